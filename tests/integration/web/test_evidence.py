"""Tests the evidence found in the library's replays: events around an event, and replays that match a search."""

from __future__ import annotations

import re

import msgspec
import pytest

from ingest.web import evidence
from ingest.web.evidence import MATCHES_MAX, events_around, find
from ingest.web.model import Filter, NotFound
from ingest.web.present import found_dict
from ingest.web.reads import Reads
from ingest.web.selector import parse_selector
from tests.kit.library import HOLED, PROJECT, RECORDED_PROJECT, SPOILED, Library
from tests.kit.paths import ROOT


def ids(reads: Reads, text: str = "", **chosen: object) -> set[str]:
    """Matching replays."""
    return {result.replay.replay_id for result in find(reads, Filter(**chosen), text).found}  # type: ignore[arg-type]


def test_a_rage_click_is_shown_with_the_events_around_it(reads: Reads, library: Library):
    """Around a rage click, which is given by its id or by its time in seconds, all events within the window are
    shown.
    """
    replay = reads.replay(library.shop_id)
    whole = reads.timeline(reads.segments(replay))
    (rage,) = [mark for mark in whole.marks if mark.kind == "rage_click"]

    found = events_around(reads, replay, rage.event, 10_000)
    again = events_around(reads, replay, (rage.at_ms - whole.start_ms) / 1000, 10_000)

    assert found.marks == again.marks == [m for m in whole.marks if abs(m.at_ms - rage.at_ms) <= 10_000]
    assert 1 < len(found.marks) < len(whole.marks)
    assert (found.event, found.at_ms, again.event) == (rage.event, rage.at_ms, None)
    assert found.page.endswith("shop.html")


def test_a_window_spans_the_pages_of_a_timeline(reads: Reads, library: Library, monkeypatch: pytest.MonkeyPatch):
    """The window around an event may span several pages of a timeline, which is read page by page."""
    replay = reads.replay(library.shop_id)
    whole = events_around(reads, replay, 0.0, 3_600_000)
    monkeypatch.setattr("ingest.web.recordings.PAGE_INFLATED_BYTES_MAX", 1)

    paged = events_around(reads, replay, whole.marks[-1].event, 3_600_000)

    assert reads.timeline(reads.segments(replay)).next_segment is not None
    assert {mark.event for mark in paged.marks} >= {mark.event for mark in whole.marks if mark.kind != "click"}
    assert (paged.start_ms, paged.end_ms) == (whole.start_ms, whole.end_ms)


def test_an_unknown_event_is_not_found(reads: Reads, library: Library):
    """An unknown event is reported in one line, and an invalid id is a usage error."""
    with pytest.raises(NotFound, match="no event 4-99999"):
        events_around(reads, reads.replay(library.shop_id), "4-99999", 1000)
    with pytest.raises(ValueError, match="like 4-17, nor seconds"):
        evidence.parse_position("soon")
    assert (evidence.parse_position("4-17"), evidence.parse_position("12.5s")) == ("4-17", 12.5)


def test_each_search_finds_its_replays(reads: Reads, library: Library):
    """Replays are found by address, user, release, error, and element.

    All parts of the element's selector must match the same click.
    """
    shops = {library.shop_id, library.old_shop_id}

    assert ids(reads, url="SHOP.EXAMPLE/3") == {HOLED}
    assert ids(reads, user="ADA@example") == shops
    assert ids(reads, user="shop.example/3") == set()
    assert ids(reads, release="shop@old") == {SPOILED}
    assert ids(reads, error_id="d" * 32) == {HOLED}
    assert ids(reads, error_id="e" * 32) == set()
    assert ids(reads, selector=parse_selector("button#rage.btn")) == shops
    assert ids(reads, selector=parse_selector("button#rage.btn"), rage=True) == shops
    assert ids(reads, selector=parse_selector("a#rage")) == set()
    assert ids(reads, selector=parse_selector("button#dead"), rage=True) == set()


def test_a_text_is_found_in_the_events_of_recordings(reads: Reads, library: Library):
    """A search for text covers breadcrumbs, console messages and requests, is case-insensitive, and names the
    event of each match.
    """
    page = find(reads, Filter(project_id=None), "/API/")
    matches = {result.replay.replay_id: result.matches for result in page.found}

    assert set(matches) == {library.shop_id, library.old_shop_id}
    assert {match.kind for match in matches[library.shop_id]} >= {"network"}
    first = matches[library.shop_id][0]
    seen = events_around(reads, reads.replay(library.shop_id), first.event, 0)
    assert first.title in [mark.title for mark in seen.marks]
    assert all(len(found) <= MATCHES_MAX for found in matches.values())
    assert page.incomplete  # SPOILED is corrupt and HOLED has gaps, so neither can be searched completely.


def test_pages_of_a_search_are_complete(reads: Reads):
    """Each page of a search gives the offset of the next page, and all pages together contain every result.

    A page of a text search may be empty.
    """
    whole = ids(reads, project_id=PROJECT)
    seen: set[str] = set()
    offset: int | None = 0
    while offset is not None:
        page = find(reads, Filter(project_id=PROJECT, limit=1, offset=offset))
        seen |= {result.replay.replay_id for result in page.found}
        offset = page.next_offset

    assert seen == whole
    assert find(reads, Filter(project_id=PROJECT, limit=1), "no such text").found == ()


def test_the_documented_fields_are_the_printed_ones(reads: Reads, library: Library):
    """docs/evidence.md names exactly the fields that are printed."""
    text = (ROOT / "docs" / "evidence.md").read_text()
    documented = {
        name for row in re.findall(r"^\| (`[^|]*) \|", text, re.M) for name in re.findall(r"`([^`]*)`", row)
    }
    replay = reads.replay(library.shop_id)
    found = found_dict(find(reads, Filter(project_id=RECORDED_PROJECT, limit=1), "button"))
    seen = msgspec.to_builtins(events_around(reads, replay, 0.0, 60_000))
    listed = set(found["replays"][0]) - set(msgspec.to_builtins(replay)) - {"duration_seconds"}

    assert documented == {
        *(f"{name}" for name in (*found, *seen)),
        *(f"replays[].{name}" for name in listed),
        *(f"matches[].{name}" for name in found["replays"][0]["matches"][0]),
        *(f"marks[].{name}" for name in seen["marks"][0]),
    }
