"""What the sinks hold, compared with what they should hold.

    report = reconcile(settings, Expectation.of_manifest(path), statsd_url=...)
    report.ok

Each `read_*` asks one server for everything that it holds; each `compare_*` is pure and gives one `Check`. Sinks
that are switched off in the settings are not asked. Objects are downloaded and hashed; nothing is concluded from
listings alone.
"""
