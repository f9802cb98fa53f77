"""Rows from disk to workers, by Ray Data or without it."""
