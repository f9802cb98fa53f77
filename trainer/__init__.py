"""Tensors: transfer, models, objectives, the engine, merging and evaluation. No job, no HTTP."""
