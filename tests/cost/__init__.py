"""Measures the cost of the most expensive messages, both known shapes and messages found by a search, and checks
that the cost stays within the limit.
"""
