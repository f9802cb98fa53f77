"""An embedder behind `/v1/embeddings`, on Ray Serve. Walk: `app` → `protocol` → `batching` → `trainer.embedder`."""
