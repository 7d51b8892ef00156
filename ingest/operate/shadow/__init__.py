"""Compares what this release would write with what is stored: a canary before an upgrade.

    replays-ingest shadow --since 30m

    contents.py    rows of ClickHouse by identity and by content
    comparison.py  the result, for machines and people
    run.py         reads the topic one chunk at a time and compares each sink

Nothing is written, no group is joined and nothing is committed. Only offsets that the readers' group has committed
are read, because others are not stored yet.
"""

from ingest.operate.shadow.comparison import Comparison, Difference, Kind, Tally, render
from ingest.operate.shadow.run import run

__all__ = ["Comparison", "Difference", "Kind", "Tally", "render", "run"]
