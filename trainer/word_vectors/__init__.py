"""Vectors of words and tokens: training, files, spaces and the rotation between two of them."""
