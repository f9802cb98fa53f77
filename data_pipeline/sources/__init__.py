"""Where text and pairs come from."""
