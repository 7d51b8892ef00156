"""Every rejected message of the dead-letter topic."""

from __future__ import annotations

import hashlib

from ingest.local.compare.report import ReconcileError
from ingest.local.load.expectation import Letter, Place
from ingest.settings import Settings
from tasks.kafka.ranges import Bounds, RangeError, RangeReader


def read_letters(settings: Settings, deadline_seconds: float = 60.0) -> tuple[dict[Place, Letter], int]:
    """The rejects of the dead-letter topic by the place of their original, and how many records repeat one."""
    found: dict[Place, Letter] = {}
    repeats = 0
    try:
        with RangeReader(settings, settings.dlq_topic, bounds=Bounds(seconds_max=deadline_seconds)) as topic:
            for record in topic.read_all():
                headers = {name: (value or b"").decode("utf-8", "replace") for name, value in record.headers}
                if "sink" in headers or "reason" not in headers:
                    continue
                place = (headers["topic"], int(headers["partition"]), int(headers["offset"]))
                repeats += place in found
                found[place] = Letter(headers["reason"], hashlib.sha256(record.value).hexdigest())
    except RangeError as error:
        raise ReconcileError(str(error)) from error
    return found, repeats
