"""Sources of text and pairs."""
