"""The sans-I/O core: it decides and never acts.

No clock, network, environment, logging or randomness in this package; `now` (seconds, a monotonic float)
is always an argument. Start reading at `pipeline.py`.
"""
