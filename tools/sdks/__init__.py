"""Compares stored facts with the actions performed in the shop of `replays-ingest try`, live, with any version of
the SDK for browsers.
"""
