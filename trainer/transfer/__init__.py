"""From the embeddings of one vocabulary to those of another, through one sparse matrix (see `plan.py`)."""
