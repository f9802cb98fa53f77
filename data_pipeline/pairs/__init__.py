"""Text pairs for embedder training."""

CHUNK_TOKENS = 16_384
"""Tokens, with padding, that a worker encodes at once if the user does not say."""
