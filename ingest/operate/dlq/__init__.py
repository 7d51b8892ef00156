"""The dead-letter topic as operators see it: list, show, replay.

letters.py    reads the topic: letters, which of them were replayed, selections
originals.py  what a refused item's original message makes of itself today
erased.py     which letters are of an erased replay: they are neither shown nor sent
replay.py     sends letters where they belong, and marks them
"""

from ingest.operate.dlq.erased import ERASED, erasures_now, is_erased, shown
from ingest.operate.dlq.letters import DeadLettersUnavailable, Letter, Selection, letters, mentioning
from ingest.operate.dlq.replay import Replayed, replay

__all__ = [
    "ERASED",
    "DeadLettersUnavailable",
    "Letter",
    "Replayed",
    "Selection",
    "erasures_now",
    "is_erased",
    "letters",
    "mentioning",
    "replay",
    "shown",
]
