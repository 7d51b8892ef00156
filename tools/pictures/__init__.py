"""Takes screenshots of original and replayed pages side by side, and of the steps of `replays-ingest try`."""
