"""Shared test helpers: builders, running servers, fleets and whole systems.

They are imported by name and never collected as tests.
"""
