"""Hard negatives for text pairs: encode, search exactly, choose; and the scores of a cross-encoder."""
