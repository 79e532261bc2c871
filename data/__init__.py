"""Data sets: where images are read from, how they become one size, and the batches of a training.

A room below training and evaluation, which both read images through it.
"""
