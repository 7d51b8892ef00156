"""The sans-I/O core: decisions without side effects.

This package uses no clock, network, environment, logging or randomness; `now` (monotonic seconds) is always an
argument. Start reading at `pipeline.py`.
"""
