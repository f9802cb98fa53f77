"""Models: loading, forwards on packed rows, pooling."""
