"""Histories of a group's committed offsets: collected from logs and the broker, judged by a pure function.

check.py    the definition of a history, and its rules
collect.py  collects a history from the readers' logs and from the broker
owners.py   how long partitions had no owner
"""
