"""Tokenised, packed, immutable rows on disk, and the manifest with the hash of every file."""
