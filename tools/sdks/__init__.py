"""Live comparison of facts: the shop of `replays-ingest try`, recorded by any version of the SDK for browsers."""
