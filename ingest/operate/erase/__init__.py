"""Permanently erases replays in both layouts: objects and ranges first, then the rows that refer to them.

    replays-ingest erase --project 1 0123456789abcdef0123456789abcdef

    0. Kafka          writes a tombstone to the operators' topic, so that readers no longer write the replay;
                      waits until the messages that readers had read before have settled
    1. Cloud Storage  deletes every generation of the replay's own objects; overwrites the replay's ranges within
                      packed objects with zeros, unless the object has changed since it was read
    2. BigQuery       deletes the replay's facts by DML; reports rows that are still in the streaming buffer,
                      where they cannot be deleted
    3. ClickHouse     deletes the replay's rows, those of `replay_places` last, because that table contains the
                      positions of the replay's bytes

With this order, the next run can complete an interrupted run. `replay_outcomes` is kept for billing and contains
no replay content. Kafka cannot delete single messages. Until the erased messages expire, they are dropped if
they are delivered again. Dead letters of the replay are listed but not replayed. See
docs/decisions/018-operators-decisions-in-kafka.md and docs/decisions/028-erase-in-place.md.

    holdings.py  the stored data of a replay, and what erasure does not cover
    rows.py      ClickHouse: finds and deletes rows
    facts.py     BigQuery: counts and deletes facts
    objects.py   Cloud Storage: a replay's own objects, and ranges within packed ones
    tombstones.py  the decision, and the wait for batches in flight
    certificate.py the record of an erasure
    eraser.py    all steps in order, recorded in the audit trail
"""

from ingest.operate.erase.certificate import certificate
from ingest.operate.erase.eraser import Eraser
from ingest.operate.erase.erasure import Erasure, ErasureResult
from ingest.operate.erase.holdings import (
    EraseFailed,
    Generation,
    Holdings,
    describe_uncovered_data,
    listed_ids,
    plain_id,
)
from ingest.operate.erase.objects import Objects, zero_spans
from ingest.operate.erase.rows import TABLES

__all__ = [
    "TABLES",
    "EraseFailed",
    "Eraser",
    "Erasure",
    "ErasureResult",
    "Generation",
    "Holdings",
    "Objects",
    "certificate",
    "describe_uncovered_data",
    "listed_ids",
    "plain_id",
    "zero_spans",
]
