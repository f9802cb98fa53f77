"""Transfers the embeddings of one vocabulary to another by a sparse matrix (see `plan.py`)."""
