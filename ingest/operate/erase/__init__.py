"""Erases one replay for good, in both layouts: objects and ranges first, the rows that lead to them last.

    replays-ingest erase --project 1 0123456789abcdef0123456789abcdef

    1. Cloud Storage  objects of its own are deleted in every generation; its ranges within packed objects are
                      overwritten with zeros, if the generation is still the one that was read
    2. BigQuery       its facts, by DML; what is in the streaming buffer cannot be deleted yet and is said
    3. ClickHouse     its rows, `replay_places` last: with it goes the knowledge where its bytes were

So a run that was cut off anywhere is finished by the next one. `replay_outcomes` stays: it is what was billed
(that there was a replay, whose, and when), and has no content. Kafka, Redis and the dead-letter topic cannot
delete single messages: what they could deliver again is waited for, and dead letters are named.
Why so: docs/decisions/028-erase-in-place.md.

    holdings.py  what there is of a replay, and what no erasure reaches
    rows.py      ClickHouse: looks, and deletes
    facts.py     BigQuery: counts, and deletes
    objects.py   Cloud Storage: objects of its own, and ranges within packed ones
    eraser.py    all of it in order, audited
"""

from ingest.operate.erase.eraser import Eraser, redelivery_hours
from ingest.operate.erase.holdings import EraseFailed, Generation, Holdings, plain_id, remains
from ingest.operate.erase.objects import Objects, blank
from ingest.operate.erase.rows import TABLES

__all__ = [
    "TABLES",
    "EraseFailed",
    "Eraser",
    "Generation",
    "Holdings",
    "Objects",
    "blank",
    "plain_id",
    "redelivery_hours",
    "remains",
]
