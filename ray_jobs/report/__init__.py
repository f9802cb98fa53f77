"""Writes the page and the summary of finished stages. Computes no metrics."""
