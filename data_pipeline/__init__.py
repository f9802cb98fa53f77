"""The ground floor: text in, ordered batches out. No model."""
