"""Runs a game day: injects faults on real servers, waits for their alerts, and fixes them with the runbook."""
