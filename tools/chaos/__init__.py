"""Random faults on real processes, from a seed, and the proof that nothing was lost."""
