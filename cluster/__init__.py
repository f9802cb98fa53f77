"""Machines and processes: the Ray session, the executor and the server. No training code."""
