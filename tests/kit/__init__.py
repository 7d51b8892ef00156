"""Shared test helpers: builders, running servers, fleets and whole systems.

The helpers are imported by name and never collected as tests.
"""
