"""Collects and checks histories of a group's committed offsets.

check.py    defines a history, and checks it with a pure function
collect.py  collects a history from the logs of readers and from the broker
owners.py   how long partitions had no owner
"""
