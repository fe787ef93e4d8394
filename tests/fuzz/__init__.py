"""Malformed bytes, many of them: `python -m tests.fuzz.run`."""
