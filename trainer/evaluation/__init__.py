"""Measuring embedders: one task a file."""
