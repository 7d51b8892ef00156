"""Parsing in the loop (`inline`), or in child processes over shared memory (`link`, `child`)."""
