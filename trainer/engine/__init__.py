"""The training engine: DeepSpeed inside Ray Train, fed by the plan."""
