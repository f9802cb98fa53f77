"""Scion on Kubernetes: manifests for KubeRay, and what runs beside Ray in its pods.

`base/` holds the documents and is the only source: the overlays (kustomize) and `manifests` (`scion manifests`) set sizes in
them.
"""
