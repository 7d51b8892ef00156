"""Operator commands: check, status, top, dead letters, inspection, reconciliation, erasure."""
