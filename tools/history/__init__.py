"""Histories of a group's committed offsets: gathered from logs and the broker, judged by a pure function.

check.py    what a history is, and what must hold in it
collect.py  a history from the readers' logs, and from asking the broker
"""
