"""Faults in a real run on several raylets: by seed in `python -m tests.faults`, one by one in `test_each_fault.py`."""
