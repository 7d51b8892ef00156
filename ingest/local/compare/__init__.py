"""Compares the contents of the sinks with their expected contents.

    report = reconcile(settings, Expectation.of_manifest(path), statsd_url=...)
    report.ok

Each `read_*` reads everything that one server holds; each `compare_*` is pure and returns one `Check`. Sinks that
are disabled in the settings are not read. Objects are downloaded and hashed, because a listing alone proves
nothing.
"""
