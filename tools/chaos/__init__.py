"""Random faults on real processes, from a seed, and a check that nothing was lost."""
