"""`Reads` returns what was ingested: search results, and the details and segments of each replay."""

from __future__ import annotations

import json

import pytest

from ingest.web.model import Filter, NotFound, ReadError, SegmentState
from ingest.web.reads import Reads
from tests.kit.library import (
    HOLED,
    MOBILE,
    OLD_SECONDS,
    OTHER_PROJECT,
    PROJECT,
    RECORDED_PROJECT,
    SHARED,
    SPOILED,
    VIDEO,
    Library,
)
from tests.kit.recordings import inflated


def found(reads: Reads, **chosen: object) -> set[str]:
    """Returns the ids of the matching replays."""
    return {item.replay_id for item in reads.replays(Filter(**chosen)).replays}  # type: ignore[arg-type]


def test_projects_are_listed_with_the_number_of_their_replays(reads: Reads):
    """Projects are listed with their number of replays, including replays with a missing row or object."""
    counts = {item.project_id: item.replays for item in reads.projects()}

    assert counts == {PROJECT: 4, OTHER_PROJECT: 1, RECORDED_PROJECT: 2}


def test_releases_are_listed_per_project_or_for_all(reads: Reads):
    """Releases are listed per project or for all projects, the latest first."""
    assert reads.releases(OTHER_PROJECT) == ("shop@new",)
    assert set(reads.releases(None)) >= {"shop@new", "shop@old", "shop@1.2.3+45"}


def test_each_filter_selects_its_replays(reads: Reads, library: Library):
    """Replays can be filtered by action, release, words and time; a replay must match all given filters."""
    shops = {library.shop_id, library.old_shop_id}

    assert found(reads) == {*shops, MOBILE, HOLED, SPOILED, SHARED}
    assert found(reads, project_id=RECORDED_PROJECT) == shops
    assert found(reads, rage=True) == found(reads, dead=True) == shops
    assert found(reads, errors=True, project_id=PROJECT) == {HOLED, MOBILE}
    assert found(reads, release="shop@old") == {SPOILED}
    assert found(reads, text="SHOP.EXAMPLE/3") == {HOLED}
    assert found(reads, text=library.shop_id[:8]) == {library.shop_id}
    assert SPOILED not in found(reads, since=library.now - OLD_SECONDS / 2)
    assert found(reads, until=library.now - OLD_SECONDS / 2, project_id=PROJECT) == {SPOILED}
    assert found(reads, rage=True, release="shop@old") == set()


def test_pages_of_one_replay_are_the_complete_list(reads: Reads):
    """If each page contains one replay, the pages form the complete list in order, and every page except the last
    reports that more replays follow.
    """
    whole = [(item.project_id, item.replay_id) for item in reads.replays(Filter()).replays]
    pages = [reads.replays(Filter(limit=1, offset=offset)) for offset in range(len(whole))]

    assert [(item.project_id, item.replay_id) for page in pages for item in page.replays] == whole
    assert [page.more for page in pages] == [True] * (len(whole) - 1) + [False]


def test_a_replay_shows_its_actions(reads: Reads, library: Library):
    """A replay has counts of its actions: of nine clicks, two are dead and one is a rage click.

    Each page visit is listed.
    """
    replay = reads.replay(library.shop_id)

    assert (replay.project_id, replay.segments, replay.segment_id_max) == (RECORDED_PROJECT, 8, 7)
    assert (replay.clicks, replay.dead_clicks, replay.rage_clicks) == (9, 2, 1)
    assert [page.rpartition("/")[2] for page in replay.pages] == ["shop.html", "cart?step=1", "home#top"]
    assert (replay.user, replay.release) == ("ada@example.org", "shop@1.2.3+45")
    assert 0 <= replay.started_at - library.shop.facts["start"] / 1000 + 1 <= 2
    assert 40 < replay.duration_seconds < 50
    assert replay.bytes_stored == sum(len(body) for body in library.shop.bodies)
    assert replay.bytes_inflated == sum(len(inflated(body)) for body in library.shop.bodies)


def test_an_id_in_two_projects_needs_the_project(reads: Reads):
    """If two projects have a replay with the same id (ids come from browsers), the error names both projects."""
    with pytest.raises(NotFound, match=r"in several projects, choose one: \[7, 8\]"):
        reads.replay(SHARED)

    assert reads.replay(SHARED, OTHER_PROJECT).project_id == OTHER_PROJECT


@pytest.mark.parametrize(
    ("replay_id", "project", "error"),
    [
        ("e" * 32, None, "no replay e{32} in any project"),
        ("e" * 32, PROJECT, "no replay e{32} in project 7"),
        ("not-an-id", None, "'not-an-id' is not a replay id"),
    ],
)
def test_an_unknown_replay_is_reported(reads: Reads, replay_id: str, project: int | None, error: str):
    """If a replay is unknown, the error names the searched project, or says that all projects were searched."""
    with pytest.raises(NotFound, match=error):
        reads.replay(replay_id, project)


def test_an_id_may_be_written_with_dashes(reads: Reads):
    """An id may be written with dashes, as UUIDs often are."""
    assert reads.replay("AAAAAAAA-aaaa-aaaa-aaaa-aaaaaaaaaaaa").replay_id == MOBILE


def test_each_segment_shows_its_missing_data(reads: Reads):
    """The state of each segment shows what is missing: the whole segment, its row, or its object.

    Segments that were delivered twice, and objects that are not segments, are also reported.
    """
    segments = reads.segments(reads.replay(HOLED))

    assert [item.state for item in segments.all] == [
        SegmentState.STORED,
        SegmentState.STORED,
        SegmentState.MISSING,
        SegmentState.NO_OBJECT,
        SegmentState.NO_ROW,
    ]
    assert (segments.missing, segments.duplicates) == ((2, 3), (0,))
    assert [item.segment_id for item in segments.readable] == [0, 1, 4]
    assert segments.notes == (f"30/{PROJECT}/{HOLED}/notes is not a segment",)


def test_a_segment_shows_when_each_sink_stored_it(reads: Reads, library: Library):
    """A segment has the time at which each sink stored it, according to that sink's own clock, and the Kafka
    positions of all its deliveries.
    """
    first = reads.segments(reads.replay(HOLED)).all[0]

    assert first.received_at == library.now
    assert first.durable_gcs_at is not None
    assert first.durable_clickhouse_at is not None
    assert min(first.durable_gcs_at, first.durable_clickhouse_at) >= library.now - 1
    assert len({(copy.partition, copy.offset) for copy in first.copies}) == 2


def test_recordings_are_returned_byte_for_byte(reads: Reads, library: Library):
    """The recordings of a whole session, in order, and of a single segment are returned byte for byte."""
    segments = reads.segments(reads.replay(library.shop_id))

    assert [(item.segment_id, content) for item, content in reads.recordings(segments)] == list(
        enumerate(library.shop.bodies)
    )
    assert reads.recording(segments, 4).recording == inflated(library.shop.bodies[4])
    with pytest.raises(NotFound, match="segment 8 is not stored"):
        reads.recording(segments, 8)


def test_a_video_is_returned_with_its_events(reads: Reads):
    """The video of a mobile segment is returned with its events."""
    replay = reads.replay(MOBILE)
    unpacked = reads.recording(reads.segments(replay), 0)

    assert replay.is_video
    assert unpacked.video == VIDEO
    assert json.loads(unpacked.recording)[0]["data"]["tag"] == "video"


def test_a_timeline_names_an_unreadable_segment(reads: Reads):
    """A timeline names an unreadable segment and includes the events of the other segments."""
    timeline = reads.timeline(reads.segments(reads.replay(SPOILED)))

    assert timeline.unreadable.keys() == {1}
    assert "not a zlib stream" in timeline.unreadable[1]
    assert timeline.counts() == {"page": 1}


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"clickhouse_url": "http://127.0.0.1:1"}, "clickhouse: "),
        ({"gcs_endpoint": "http://127.0.0.1:1"}, "cloud storage: "),
    ],
)
def test_an_unavailable_server_is_named(library: Library, changed: dict[str, str], error: str):
    """If a server is unavailable, any exception of its client library is converted to one kind of error that names
    the server.
    """
    reads = Reads(library.settings.model_copy(update=changed))

    with pytest.raises(ReadError, match=error):
        reads.segments(reads.replay(library.shop_id))
    reads.close()


def test_a_missing_bucket_is_named(library: Library):
    """A missing bucket is named in an error, and not mistaken for a replay without objects."""
    reads = Reads(library.settings.model_copy(update={"gcs_bucket": "no-such-bucket"}))

    with pytest.raises(ReadError, match="no-such-bucket"):
        reads.segments(reads.replay(library.shop_id))
    reads.close()
