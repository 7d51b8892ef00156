"""API of the replay pages: list, replay, timeline, recordings and videos."""

from __future__ import annotations

import json
import time
from typing import Any

from ingest.web.base import Handler, is_number
from ingest.web.blobs import PlayerEvents, player_events
from ingest.web.journey import journeys
from ingest.web.model import Filter, NotFound
from ingest.web.present import page_dict, replay_dict, segments_dict, timeline_dict
from tasks.units import MiB

FIRST_PAGE_BYTES_MAX = 1 * MiB
LATER_PAGE_BYTES_MAX = 16 * MiB
LEFT_OUT_HEADER = "X-Replays-Left-Out"


class ProjectsHandler(Handler):
    """Returns the choices for the filters of the list: projects and releases."""

    async def get(self) -> None:
        project = self.number_argument("project", 0, 2**64 - 1)
        reads = self.state.reads
        projects = await self.run(reads.projects)
        releases = await self.run(lambda: reads.releases(project))
        self.answer(
            {
                "projects": [
                    {"project_id": str(project.project_id), "replays": project.replays, "last_at": project.last_at}
                    for project in projects
                ],
                "releases": releases,
            }
        )


class ReplaysHandler(Handler):
    """Returns the replays, sorted by end time, latest first. The first page includes the total number of matching
    replays.
    """

    async def get(self) -> None:
        seconds = self.number_argument("last_seconds", 1, 10 * 365 * 86400)
        chosen = Filter(
            project_id=self.number_argument("project", 0, 2**64 - 1),
            rage=self.flag_argument("rage"),
            dead=self.flag_argument("dead"),
            errors=self.flag_argument("errors"),
            release=self.text("release"),
            text=self.text("text"),
            since=time.time() - seconds if seconds else self.number_argument("since", 0, 2**32 - 1),
            until=self.number_argument("until", 0, 2**32 - 1),
            limit=self.number_argument("limit", 1, 500) or 50,
            offset=self.number_argument("offset", 0, 1_000_000) or 0,
        )
        page = page_dict(await self.run(lambda: self.state.reads.replays(chosen)))
        if not chosen.offset:
            page["total"] = await self.run(lambda: self.state.reads.count(chosen))
        self.answer(_convert_for_javascript(page))


class ReplayHandler(Handler):
    """Returns one replay: its properties, its segments and how they were ingested."""

    async def get(self, project: str, replay_id: str) -> None:
        state = self.state
        replay, segments = await self.run(lambda: state.find_replay(int(project), replay_id, fresh=True))
        places = [
            (o.partition, o.offset) for o in segments.all if o.partition is not None and o.offset is not None
        ]
        known = await self.run(lambda: journeys(state.settings, places))
        self.answer(
            _convert_for_javascript(
                {"replay": replay_dict(replay), "ingestion": segments_dict(state.settings, segments, known)}
            )
        )


class TimelineHandler(Handler):
    """Returns the timeline of one replay."""

    async def get(self, project: str, replay_id: str) -> None:
        first = self.number_argument("from_segment", 0, 10**18) or 0
        _, segments = await self.run(lambda: self.state.find_replay(int(project), replay_id))
        async with self.state.heavy:
            self.answer(timeline_dict(await self.run(lambda: self.state.reads.timeline(segments, first))))
            await self.wait_until_sent()


class RecordingHandler(Handler):
    """Returns the events for the player, page by page. The first page is small, so that playback starts early."""

    async def get(self, project: str, replay_id: str) -> None:
        first = self.number_argument("from_segment", 0, 10**18) or 0
        bytes_max = LATER_PAGE_BYTES_MAX if first else FIRST_PAGE_BYTES_MAX
        _, segments = await self.run(lambda: self.state.find_replay(int(project), replay_id))
        async with self.state.heavy:
            found = await self.run(lambda: self.state.reads.read_events_page(segments, first, bytes_max))
            head = {
                "left_out": found.left_out,
                "unreadable": found.unreadable,
                "next_segment": found.next_segment,
            }
            self.set_header("Content-Type", "application/json")
            self.finish(json.dumps(head).encode()[:-1] + b', "events": ' + found.events + b"}")
            await self.wait_until_sent()


class SegmentHandler(Handler):
    """Returns one segment's recording: the events for the player, or all events as sent (`?raw=1`)."""

    async def get(self, project: str, replay_id: str, segment: str) -> None:
        raw = self.flag_argument("raw")

        def work() -> PlayerEvents:
            recording = self.state.recording(int(project), replay_id, int(segment)).recording
            return PlayerEvents(recording) if raw else player_events(recording)

        async with self.state.heavy:
            found = await self.run(work)
            self.set_header("Content-Type", "application/json")
            if raw:
                self.set_header("Content-Disposition", f'attachment; filename="{replay_id}-{segment}.json"')
            if found.left_out:
                self.set_header(LEFT_OUT_HEADER, found.left_out)
            self.finish(found.content)
            await self.wait_until_sent()


class VideoHandler(Handler):
    """Returns one segment's video, or a byte range of it."""

    destinations = Handler.destinations | {"video"}

    async def get(self, project: str, replay_id: str, segment: str) -> None:
        def work() -> bytes:
            video = self.state.recording(int(project), replay_id, int(segment)).video
            if video is None:
                raise NotFound(f"segment {segment} has no video")
            return video

        async with self.state.heavy:
            video = await self.run(work)
            self._send(video)
            await self.wait_until_sent()

    def _send(self, video: bytes) -> None:
        self.set_header("Content-Type", "video/mp4")
        self.set_header("Accept-Ranges", "bytes")
        requested = byte_range(self.request.headers.get("Range", ""), len(video))
        if requested is not None:
            start, stop = requested
            self.set_status(206)
            self.set_header("Content-Range", f"bytes {start}-{stop - 1}/{len(video)}")
            video = video[start:stop]
        self.finish(video)


def _convert_for_javascript(value: Any) -> Any:
    """Converts project ids to text, because JavaScript's numbers are exact only up to 2**53."""
    if isinstance(value, dict):
        return {k: str(v) if k == "project_id" else _convert_for_javascript(v) for k, v in value.items()}
    return [_convert_for_javascript(v) for v in value] if isinstance(value, list) else value


def byte_range(header: str, size: int) -> tuple[int, int] | None:
    """Returns the requested byte range, half-open. None means the whole file."""
    unit, _, bounds = header.partition("=")
    first, separator, last = bounds.partition("-")
    if unit != "bytes" or not separator or not size:
        return None
    if is_number(first) and (not last or is_number(last)):
        start, stop = int(first), min(int(last) + 1, size) if last else size
    elif not first and is_number(last):
        start, stop = max(0, size - int(last)), size
    else:
        return None
    return (start, stop) if start < stop else None
