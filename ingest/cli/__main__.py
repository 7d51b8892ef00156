"""Makes `python -m ingest.cli` equivalent to `replays-ingest`."""

from ingest.cli.main import main

main()
