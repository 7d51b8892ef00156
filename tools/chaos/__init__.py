"""Injects seeded random faults into real processes, and checks that nothing was lost."""
