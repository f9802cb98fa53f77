"""Manifests for Kubernetes: rendered, validated, broken on purpose. `make manifests` measures."""
