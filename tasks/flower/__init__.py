"""Flower for this fleet: never without a password, and with a button that retries a failed task's batch."""
