"""Converts the results of `Reads` to JSON, for `--json` and the pages."""

from __future__ import annotations

from typing import Any

import msgspec

from ingest.web.evidence import FoundPage
from ingest.web.journey import Journeys, flower_url
from ingest.web.model import Replay, Segments
from ingest.web.replays import Page
from ingest.web.timeline import Timeline
from tasks.settings import Settings


def replay_dict(replay: Replay) -> dict[str, Any]:
    """Returns one replay as JSON values, with all fields and its duration."""
    plain: dict[str, Any] = msgspec.to_builtins(replay)
    return {**plain, "duration_seconds": replay.duration_seconds}


def page_dict(page: Page) -> dict[str, Any]:
    """Returns a page of replays as JSON values."""
    return {"replays": [replay_dict(replay) for replay in page.replays], "more": page.more}


def segments_dict(settings: Settings, segments: Segments, journeys: Journeys) -> dict[str, Any]:
    """Returns the segments in order, with gaps and ingestion details.

    `committed`: the message precedes the committed offset, so it is durable in every sink. `batch`: the batch, if
    it is still in Redis.
    """
    listed = []
    for segment in segments.all:
        plain: dict[str, Any] = msgspec.to_builtins(segment)
        plain["batch"] = plain["committed"] = None
        if segment.partition is not None and segment.offset is not None:
            committed = journeys.committed.get(segment.partition)
            plain["committed"] = None if committed is None else segment.offset < committed
            batch = journeys.of(segment.partition, segment.offset)
            if batch is not None:
                plain["batch"] = {
                    **msgspec.to_builtins(batch),
                    "durable": batch.durable,
                    "flower": flower_url(settings, batch.batch_id),
                }
        listed.append(plain)
    return {
        "segments": listed,
        "missing": list(segments.missing),
        "duplicates": list(segments.duplicates),
        "notes": [*segments.notes, *([journeys.error] if journeys.error else [])],
    }


def found_dict(page: FoundPage) -> dict[str, Any]:
    """Returns the replays as in `page_dict`, each with its matching events."""
    return {
        "replays": [
            {
                **replay_dict(found.replay),
                "matches": msgspec.to_builtins(found.matches),
                "complete": found.complete,
            }
            for found in page.found
        ],
        "next_offset": page.next_offset,
        "incomplete": list(page.incomplete),
    }


def timeline_dict(timeline: Timeline) -> dict[str, Any]:
    """Returns the timeline, with counts of marks by kind."""
    plain: dict[str, Any] = msgspec.to_builtins(timeline)
    return {**plain, "counts": timeline.counts()}
