"""Malformed bytes, hostile clients and mishaps, many of them: `python -m tests.fuzz.run`."""
