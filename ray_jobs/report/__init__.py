"""The page and the summary over finished stages. Computes no metric."""
