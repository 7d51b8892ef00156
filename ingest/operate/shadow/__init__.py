"""Compares what this release would write with what is stored, as a canary before an upgrade.

    replays-ingest shadow --since 30m

    contents.py    compares rows of ClickHouse by identity and content
    comparison.py  the result, as JSON and as text
    run.py         reads the topic one chunk at a time and compares each sink

The comparison writes nothing, joins no group and commits nothing. The comparison reads only offsets that the
readers' group has committed, because later messages are not stored yet.
"""

from ingest.operate.shadow.comparison import Comparison, Difference, Kind, Tally, render
from ingest.operate.shadow.run import run

__all__ = ["Comparison", "Difference", "Kind", "Tally", "render", "run"]
