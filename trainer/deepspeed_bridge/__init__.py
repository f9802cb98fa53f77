"""Every place that depends on the inside of DeepSpeed, each with the version that it was read from."""
