"""Compares stored facts with the actions performed live in the shop of `replays-ingest try`, with any version of
the SDK for browsers.
"""
