"""`python -m ingest.cli` is `replays-ingest`."""

from ingest.cli.main import main

main()
