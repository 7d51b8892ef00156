"""Measures the cost of the most expensive messages: known shapes, a search for others, and the limit that all of
them must meet.
"""
