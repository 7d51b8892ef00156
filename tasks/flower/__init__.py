"""Flower with mandatory login and a button that retries a failed task's batch."""
