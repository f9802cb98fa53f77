"""`python -m ray_jobs.report CONFIG`."""

from pathlib import Path

from ray_jobs.cli import run_module

run_module(str(Path(__file__).parent))
