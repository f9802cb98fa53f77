"""Files at any URI, and the artefact folders that jobs write."""
