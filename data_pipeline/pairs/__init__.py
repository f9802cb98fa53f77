"""Text pairs for embedder training."""

CHUNK_TOKENS = {"cpu": 2048, "gpu": 32_768}
"""Tokens, with padding, that a worker encodes at once if the user does not say. On a CPU more is slower: MiniLM's activations
of 16,384 tokens take 9 GiB, and a step nearly twice the time."""
