"""Serves an embedder at `/v1/embeddings`, in one process (`process`) or on Ray Serve (`app`).

A request passes `front`, `protocol`, `model`, `batching`, `trainer.embedder` and `answers`.
"""
