"""Text pairs for embedder training."""
