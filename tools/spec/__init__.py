"""Checks the specification of the commit protocol exhaustively, and the histories of runs against it."""
