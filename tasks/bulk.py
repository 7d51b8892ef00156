"""Retries or abandons many parked batches at once, for a given reason. Retrying many batches creates one audit
entry and takes one round trip to Redis. Abandoning many batches creates one audit entry per batch, because each
batch is read from Kafka again and made durable as dead letters on its own (`tasks.operate`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from redis.exceptions import RedisError

from tasks.coordination import Coordination
from tasks.errors import SinkError
from tasks.kafka.producing import NotProduced
from tasks.kafka.ranges import RangeError
from tasks.operate import SILENT_SECONDS_MAX, NotParked, ReaderGone, abandon
from tasks.settings import Settings
from tasks.sinks.base import Sink
from tasks.wire import Completion, CompletionKind

BATCHES_MAX = 1000
# Abandoning a batch takes about a tenth of a second, and the operator waits until all batches are abandoned.
ABANDONED_BATCHES_MAX = 200
NOT_TRIED = "not attempted after the error above"


@dataclass
class Outcomes:
    """Ids of the changed batches, and the reason for each batch that could not be changed."""

    done: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def retry_all(coordination: Coordination, batch_ids: Sequence[str], by: str, reason: str) -> Outcomes:
    """Asks the readers of these batches to retry them now. Raises RedisError, NotProduced or ValueError."""
    _expect(batch_ids, reason, BATCHES_MAX)
    outcomes, requests = Outcomes(), []
    parked, readers = coordination.parked(), coordination.readers()
    for batch_id in dict.fromkeys(batch_ids):
        refusal = _refusal(parked.get(batch_id), readers)
        if refusal:
            outcomes.refused[batch_id] = refusal
        else:
            outcomes.done.append(batch_id)
            requests.append((str(parked[batch_id]["reader"]), Completion(CompletionKind.RETRY, batch_id)))
    if outcomes.done:
        ids = ",".join(outcomes.done)
        count = len(outcomes.done)
        action = {"what": "retry", "by": by, "reason": reason, "batches": count, "batch_id": ids}
        coordination.audit(action)
        coordination.send_completions(requests)
    return outcomes


def abandon_all(
    settings: Settings,
    coordination: Coordination,
    dead_letters: Sink[Any],
    batch_ids: Sequence[str],
    reason: str,
    by: str,
) -> Outcomes:
    """Abandons these batches one after another. Raises ValueError.

    Stops at the first error of Redis, Kafka or a sink, because every further batch would time out too.
    """
    _expect(batch_ids, reason, ABANDONED_BATCHES_MAX)
    outcomes, remaining = Outcomes(), list(dict.fromkeys(batch_ids))
    while remaining:
        batch_id = remaining.pop(0)
        try:
            abandon(settings, coordination, dead_letters, batch_id, reason, by)
            outcomes.done.append(batch_id)
        except (NotParked, ReaderGone) as error:
            outcomes.refused[batch_id] = str(error)
        except (RedisError, SinkError, RangeError, NotProduced) as error:
            outcomes.refused[batch_id] = str(error)
            outcomes.refused |= dict.fromkeys(remaining, NOT_TRIED)
            break
    return outcomes


def _expect(batch_ids: Sequence[str], reason: str, count_max: int) -> None:
    if not reason.strip():
        raise ValueError("a reason is required, to explain the action later")
    if not 1 <= len(batch_ids) <= count_max:
        raise ValueError(f"select 1 to {count_max} batches ({len(batch_ids)} are selected)")


def _refusal(entry: Mapping[str, Any] | None, readers: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the reason why this batch cannot be retried; empty if it can be."""
    if entry is None:
        return "not parked any more"
    alive = readers.get(str(entry["reader"]))
    if alive is None or alive["silent_seconds"] > SILENT_SECONDS_MAX:
        return f"its reader {entry['reader']} sends no heartbeat"
    return ""
