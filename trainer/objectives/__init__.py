"""Losses on representations: vectors in, scalar out. No model, no collective."""
