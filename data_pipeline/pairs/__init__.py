"""Rows for embedder training."""
