"""Compares stored facts with actions performed in the shop of `replays-ingest try`, for any version of the browser
SDK.
"""
