"""Tokenizers: training one of a model's own family, and the form in which tokens of two tokenizers compare."""
