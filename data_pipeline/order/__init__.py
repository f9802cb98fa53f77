"""Which row is trained on when: pure functions of seed and manifest, without Ray, files or state."""
