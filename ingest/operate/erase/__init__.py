"""Permanently erases replays, in both layouts: objects and ranges first, the rows that reference them last.

    replays-ingest erase --project 1 0123456789abcdef0123456789abcdef

    0. Kafka          a tombstone in the topic of operators' decisions: readers write nothing of it from then on;
                      what they took before is waited for
    1. Cloud Storage  objects of its own are deleted in every generation; its ranges within packed objects are
                      overwritten with zeros, if the generation is still the one that was read
    2. BigQuery       its facts, by DML; what is in the streaming buffer cannot be deleted yet and is said
    3. ClickHouse     its rows, `replay_places` last: with it goes the knowledge where its bytes were

An interrupted run is thus completed by the next one. `replay_outcomes` is kept for billing and has no content.
Kafka and the dead-letter topic cannot delete single messages: redelivered messages are dropped until they expire;
dead letters are listed, not replayed. See docs/decisions/018-operators-decisions-in-kafka.md,
docs/decisions/028-erase-in-place.md.

    holdings.py  what there is of a replay, and what no erasure reaches
    rows.py      ClickHouse: looks, and deletes
    facts.py     BigQuery: counts, and deletes
    objects.py   Cloud Storage: objects of its own, and ranges within packed ones
    tombstones.py  the decision, and the wait for what is in flight
    certificate.py what was erased, as a document
    eraser.py    all of it in order, audited
"""

from ingest.operate.erase.certificate import certificate
from ingest.operate.erase.eraser import Eraser
from ingest.operate.erase.erasure import Erased, Erasure
from ingest.operate.erase.holdings import EraseFailed, Generation, Holdings, plain_id, remains
from ingest.operate.erase.objects import Objects, blank
from ingest.operate.erase.rows import TABLES

__all__ = [
    "TABLES",
    "EraseFailed",
    "Erased",
    "Eraser",
    "Erasure",
    "Generation",
    "Holdings",
    "Objects",
    "blank",
    "certificate",
    "plain_id",
    "remains",
]
