"""Ways to make training pairs: one a file."""
