"""Injects random faults from a seed into real processes, and checks that nothing was lost."""
