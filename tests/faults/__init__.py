"""A real run on several raylets, disturbed on purpose: `python -m tests.faults` by seed, `test_each_fault.py` one by one."""
