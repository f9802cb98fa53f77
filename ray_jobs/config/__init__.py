"""The configuration: dataclasses, and the way from YAML to them."""
