"""Trains tokenizers of a model's own family, and compares the tokens of different tokenizers."""
