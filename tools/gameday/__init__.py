"""The game day: faults, alerts and the fixes of the runbook, on real servers."""
