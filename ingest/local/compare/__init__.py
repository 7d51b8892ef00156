"""Compares the contents of all sinks with the expected contents.

    report = reconcile(settings, Expectation.from_manifest(path), statsd_url=...)
    report.ok

Each `read_*` function reads the complete contents of one server. Each `compare_*` function is pure and returns one
`Check`. Sinks that are disabled in the settings are not read. Objects are downloaded and hashed, because a listing
alone does not show that their contents are correct.
"""
