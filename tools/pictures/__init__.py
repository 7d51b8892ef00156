"""Takes pictures of original and played pages side by side, and of the steps of `replays-ingest try`."""
