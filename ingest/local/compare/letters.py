"""Reads every rejected message in the dead-letter topic."""

from __future__ import annotations

import hashlib

from ingest.local.compare.report import ReconcileError
from ingest.local.load.expectation import Letter, LetterPosition
from ingest.settings import Settings
from tasks.kafka.letters import decode
from tasks.kafka.ranges import Bounds, RangeError, RangeReader


def read_letters(settings: Settings, deadline_seconds: float = 60.0) -> tuple[dict[LetterPosition, Letter], int]:
    """Returns the rejects in the dead-letter topic by position of the original message, and the number of
    repeated records.
    """
    found: dict[LetterPosition, Letter] = {}
    repeats = 0
    try:
        with RangeReader(settings, settings.dlq_topic, bounds=Bounds(seconds_max=deadline_seconds)) as topic:
            for record in topic.read_all():
                label = decode(record.headers)
                if label is None or label.refusal is not None:
                    continue
                place = (label.origin.topic, label.origin.partition, label.origin.offset)
                repeats += place in found
                found[place] = Letter(label.reason, hashlib.sha256(record.value).hexdigest())
    except RangeError as error:
        raise ReconcileError(str(error)) from error
    return found, repeats
