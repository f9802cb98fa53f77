"""Checkpoints: write, keep, restore, and export as model folders."""
