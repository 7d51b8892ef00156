"""JSON form of the reads, for `--json` and for the pages."""

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
    """One replay with all fields and its duration."""
    plain: dict[str, Any] = msgspec.to_builtins(replay)
    return {**plain, "duration_seconds": replay.duration_seconds}


def page_dict(page: Page) -> dict[str, Any]:
    """Some replays."""
    return {"replays": [replay_dict(one) for one in page.replays], "more": page.more}


def segments_dict(settings: Settings, segments: Segments, journeys: Journeys) -> dict[str, Any]:
    """Segments in order with gaps and ingestion details.

    `committed`: its offset is below the committed one, so it is durable in every sink. `batch`: if still in Redis.
    """
    listed = []
    for one in segments.all:
        plain: dict[str, Any] = msgspec.to_builtins(one)
        plain["batch"] = plain["committed"] = None
        if one.partition is not None and one.offset is not None:
            committed = journeys.committed.get(one.partition)
            plain["committed"] = None if committed is None else one.offset < committed
            batch = journeys.of(one.partition, one.offset)
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
        "notes": [*segments.notes, *([journeys.trouble] if journeys.trouble else [])],
    }


def found_dict(page: FoundPage) -> dict[str, Any]:
    """Replays as in `page_dict`, each with the events that match."""
    return {
        "replays": [
            {
                **replay_dict(one.replay),
                "matches": msgspec.to_builtins(one.matches),
                "complete": one.complete,
            }
            for one in page.found
        ],
        "next_offset": page.next_offset,
        "incomplete": list(page.incomplete),
    }


def timeline_dict(timeline: Timeline) -> dict[str, Any]:
    """The timeline, and counts of marks by kind."""
    plain: dict[str, Any] = msgspec.to_builtins(timeline)
    return {**plain, "counts": timeline.counts()}
