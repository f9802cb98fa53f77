"""Prepares text for tokenization."""
