"""Machines and processes: the Ray session and the server. No training code."""
