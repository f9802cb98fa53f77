"""The order of training rows: pure functions of seed and manifest, without Ray, files or state."""
