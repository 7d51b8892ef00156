"""Runs two releases over one Redis, one schema and one group, under load, and checks that nothing is lost.

releases.py  finds the previous release
"""
