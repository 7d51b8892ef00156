"""The sans-I/O core: decisions without side effects.

No clock, network, environment, logging or randomness in this package; `now` (monotonic seconds) is always an
argument. Start reading at `pipeline.py`.
"""
