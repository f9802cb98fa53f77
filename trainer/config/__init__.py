"""Settings of a training run, and learning-rate schedules."""
