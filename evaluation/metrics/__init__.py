"""Figures of images.

- ``features``: the networks that turn images into features and class logits; ``own_features``: one's own.
- ``fid``, ``inception_score``, ``kid``, ``sliced_wasserstein``, ``neighbours``: the figures; ``bootstrap``:
  their intervals.
- ``reference``: statistics of a data set, stored with what they are of.
- ``measurement``: what to measure; ``figures``: all figures in one pass over the samples.
"""
