"""Brings rows from disk to the workers, by Ray Data or without it."""
