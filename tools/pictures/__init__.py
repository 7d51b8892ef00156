"""Pictures of recordings: original and played page side by side, and the steps of `replays-ingest try`."""
