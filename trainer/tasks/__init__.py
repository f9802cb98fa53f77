"""What connects rows, model and objective: one kind of training a file."""
