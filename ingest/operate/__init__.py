"""What operators do: check, status, top, dead letters, inspection, reconciliation, erasure."""
