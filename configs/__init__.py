"""Experiments as data: ``base`` lists every field once; ve/, vp/ and subvp/ hold what differs from it."""
