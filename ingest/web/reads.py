"""Reads stored replays, for commands and pages.

reads = Reads(settings)
page = reads.replays(Filter(project_id=1))
segments = reads.segments(reads.replay(page.replays[0].replay_id))
timeline = reads.timeline(segments)
"""

from __future__ import annotations

from collections.abc import Iterator

from ingest.core.stored_recording import BlobError, UnpackedRecording
from ingest.operate.erase.tombstones import erased
from ingest.operate.text import utc_text
from ingest.web import recordings, segments
from ingest.web.model import Filter, NotFound, Replay, ReplayErased, SegmentFacts, Segments
from ingest.web.recordings import EventsPage
from ingest.web.replays import Page, Project, Replays
from ingest.web.stores import Stores
from ingest.web.timeline import Timeline
from tasks.settings import Settings


class Reads:
    """All reads. Methods block, may be called from several threads, and raise ReadError or NotFound."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stores = Stores(settings)
        self._replays = Replays(self._stores)

    def close(self) -> None:
        """Closes the connections."""
        self._stores.close()

    def projects(self) -> tuple[Project, ...]:
        """Returns the projects with replays, those with the latest replays first."""
        return self._replays.projects()

    def releases(self, project_id: int | None) -> tuple[str, ...]:
        """Returns the releases seen in replays, those with the latest replays first."""
        return self._replays.releases(project_id)

    def replays(self, chosen: Filter) -> Page:
        """Returns the matching replays, sorted by end time, latest first."""
        return self._replays.find(chosen)

    def count(self, chosen: Filter) -> int:
        """Returns the number of matching replays."""
        return self._replays.count(chosen)

    def replay(self, replay_id: str, project_id: int | None = None) -> Replay:
        """Returns one replay. Without a project, all projects are searched, which takes longer."""
        try:
            return self._replays.replay(replay_id, project_id)
        except NotFound as failure:
            tombstone = erased(self._settings, replay_id.replace("-", "").lower(), project_id)
            if tombstone is None:
                raise
            raise ReplayErased(
                f"replay {replay_id} was erased on {utc_text(float(tombstone['at']))} UTC"
            ) from failure

    def segments(self, replay: Replay) -> Segments:
        """Returns all segments in order, with gaps, from ClickHouse and Cloud Storage."""
        return segments.segments(self._stores, replay)

    def recording(self, found: Segments, segment_id: int) -> UnpackedRecording:
        """Returns the recording, and the video, of one segment. Raises BlobError if the object was not written by
        this system."""
        return recordings.recording(self._stores, found, segment_id)

    def recordings(self, found: Segments) -> Iterator[tuple[SegmentFacts, bytes | BlobError]]:
        """Returns the stored bytes of every readable segment, in order, fetched in groups."""
        return recordings.recordings(self._stores, found)

    def read_events_page(self, found: Segments, from_segment: int, bytes_max: int) -> EventsPage:
        """Returns one page of events for the player."""
        return recordings.read_events_page(self._stores, found, from_segment, bytes_max)

    def timeline(self, found: Segments, from_segment: int = 0) -> Timeline:
        """Returns one page of the replay's timeline, starting at `from_segment`. The next page starts at the
        result's `next_segment`.

        Unreadable segments are listed in the result and do not cause an error.
        """
        return recordings.timeline(self._stores, found, from_segment)
