"""The ground floor: text in, planned batches out. No model."""
