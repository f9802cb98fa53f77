"""One file a job: YAML in, artefact out. No algorithm, no tensor."""
