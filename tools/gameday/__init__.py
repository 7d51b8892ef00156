"""Runs a game day: injects faults into real servers, waits for their alerts, and fixes the faults with the
runbook.
"""
