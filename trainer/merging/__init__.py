"""Merging models: one method a file."""
