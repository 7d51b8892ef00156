"""Shared test helpers: builders, running servers, fleets and whole systems. Imported by name, never collected."""
