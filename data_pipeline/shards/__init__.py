"""Tokenised, packed, immutable rows on disk and the manifest that names every byte of them."""
