"""Text pairs for embedder training."""

CHUNK_TOKENS = {"cpu": 2048, "gpu": 32_768}
"""Tokens, with padding, that a worker encodes at once if the user does not say. On a CPU more is slower: with 16,384 tokens,
a step of 512 pairs with MiniLM took 46 s instead of 32 on two cores, and the process 9 GiB instead of 2."""
