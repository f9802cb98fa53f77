"""Exact nearest neighbours and sparse combinations over large vocabularies."""
