"""Serves an embedder at `/v1/embeddings` on Ray Serve. A request passes `app`, `protocol`, `batching`, `trainer.embedder`."""
