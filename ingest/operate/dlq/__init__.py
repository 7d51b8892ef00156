"""Dead letters for operators: list, show, replay.

letters.py     reads the topic: selects letters and detects which of them were replayed
originals.py   rebuilds a refused item from its original message
erased.py      letters of erased replays, which are neither shown nor sent
replay.py      replays letters and marks them as replayed
"""

from ingest.operate.dlq.erased import ERASED, current_erasures, is_erased, shown
from ingest.operate.dlq.letters import DeadLettersUnavailable, Letter, Selection, letters, letters_containing
from ingest.operate.dlq.replay import ReplaySummary, replay

__all__ = [
    "ERASED",
    "DeadLettersUnavailable",
    "Letter",
    "ReplaySummary",
    "Selection",
    "current_erasures",
    "is_erased",
    "letters",
    "letters_containing",
    "replay",
    "shown",
]
