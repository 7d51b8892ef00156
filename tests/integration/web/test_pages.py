"""Tests the pages and their requests over a real socket: replays, segments, videos, and errors as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from ingest.web.api import byte_range
from tests.kit.library import (
    HOLED,
    MOBILE,
    OTHER_PROJECT,
    PROJECT,
    RECORDED_PROJECT,
    SHARED,
    SPOILED,
    VIDEO,
    Library,
)
from tests.kit.recordings import inflated
from tests.kit.web_pages import Client, served


@pytest.fixture(scope="module")
def client(library: Library) -> Iterator[Client]:
    """An HTTP client for the pages that show the replays of `tests.kit.library`."""
    with served(library.settings) as running:
        yield running


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html; charset=utf-8"),
        (f"/replay/{PROJECT}/{MOBILE}", "text/html; charset=utf-8"),
        ("/static/app.css", "text/css"),
        ("/static/list.js", "text/javascript"),
    ],
)
def test_pages_have_a_policy_that_blocks_foreign_scripts(client: Client, path: str, kind: str):
    """Pages have a content security policy that blocks foreign scripts, because recorded pages are untrusted
    content.
    """
    seen = client.get(path)

    assert (seen.status, seen.headers["Content-Type"]) == (200, kind)
    assert "default-src 'none'" in seen.headers["Content-Security-Policy"]
    assert seen.headers["X-Content-Type-Options"] == "nosniff"
    assert "Server" not in seen.headers
    assert seen.body


@pytest.mark.parametrize("path", ["/", "/static/app.css", "/api/projects"])
def test_other_host_names_are_refused(client: Client, path: str):
    """Requests with other host names are refused, so that a page from a foreign host whose name resolves to this
    server's address gets no data.
    """
    assert client.get(path, Host="rebound.example").status == 421
    assert client.get(path, Host="localhost").status == 200


def test_the_list_offers_the_existing_choices(client: Client):
    """The list offers the existing projects, whose ids are sent as strings.

    JavaScript's numbers are exact only up to 2**53.
    """
    seen = client.get("/api/projects").json

    assert {entry["project_id"]: entry["replays"] for entry in seen["projects"]} == {
        str(PROJECT): 4,
        str(OTHER_PROJECT): 1,
        str(RECORDED_PROJECT): 2,
    }
    assert client.get(f"/api/projects?project={OTHER_PROJECT}").json["releases"] == ["shop@new"]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (f"project={PROJECT}", {MOBILE, HOLED, SPOILED, SHARED}),
        (f"project={PROJECT}&last_seconds=86400", {MOBILE, HOLED, SHARED}),
        (f"project={OTHER_PROJECT}&rage=1", set()),
        ("release=shop%40old", {SPOILED}),
        ("text=shop.example%2F3&errors=true", {HOLED}),
        (f"project={PROJECT}&since=&until=", {MOBILE, HOLED, SPOILED, SHARED}),
    ],
)
def test_a_query_selects_replays(client: Client, query: str, expected: set[str]):
    """Each filter of the list selects replays; empty filters are ignored."""
    seen = client.get(f"/api/replays?{query}").json

    assert {entry["replay_id"] for entry in seen["replays"]} == expected
    assert all(isinstance(entry["project_id"], str) for entry in seen["replays"])


def test_the_first_page_of_the_list_has_the_total(client: Client):
    """The first page of the list contains the total number of matching replays, however many are shown."""
    first = client.get(f"/api/replays?project={PROJECT}&limit=1").json
    second = client.get(f"/api/replays?project={PROJECT}&limit=1&offset=1").json
    everything = client.get(f"/api/replays?project={PROJECT}").json

    assert (len(first["replays"]), first["total"]) == (1, len(everything["replays"]))
    assert first["total"] > 1
    assert "total" not in second


@pytest.mark.parametrize(
    ("query", "error_text"),
    [
        ("project=seven", "project must be a number from 0 to 18446744073709551615"),
        ("limit=501", "limit must be a number from 1 to 500"),
        ("offset=-1", "offset must be a number from 0 to 1000000"),
    ],
)
def test_a_wrong_query_is_refused_with_an_example(client: Client, query: str, error_text: str):
    """An invalid query gets a 400 response with one line and an example."""
    seen = client.get(f"/api/replays?{query}")

    assert (seen.status, seen.error) == (400, error_text)


def test_a_replay_includes_its_ingestion_state(client: Client):
    """Each segment is listed with its state and location; missing data is named."""
    seen = client.get(f"/api/replays/{PROJECT}/{HOLED}").json

    assert (seen["replay"]["replay_id"], seen["replay"]["project_id"]) == (HOLED, str(PROJECT))
    states = [entry["state"] for entry in seen["ingestion"]["segments"]]
    assert states == ["stored", "stored", "missing", "no_object", "no_row"]
    assert (seen["ingestion"]["missing"], seen["ingestion"]["duplicates"]) == ([2, 3], [0])


def test_a_timeline_is_sent(client: Client, library: Library):
    """The response has the marks, their counts, and the positions at which the player can start."""
    seen = client.get(f"/api/replays/{RECORDED_PROJECT}/{library.shop_id}/timeline").json

    assert seen["counts"]["rage_click"] == 1
    assert sum(seen["counts"].values()) == len(seen["marks"])
    assert seen["snapshots"]


def test_a_segment_is_sent_for_the_player_or_unchanged(client: Client, library: Library):
    """A segment is sent in the player's format, or unchanged as a download with its own file name."""
    path = f"/api/replays/{RECORDED_PROJECT}/{library.shop_id}/segments/0"
    whole = inflated(library.shop.bodies[0])

    played, raw = client.get(path), client.get(f"{path}?raw=1")

    assert played.json == [event for event in json.loads(whole) if event["type"] != 5]
    assert raw.body == whole
    assert raw.headers["Content-Disposition"] == f'attachment; filename="{library.shop_id}-0.json"'


@pytest.mark.parametrize(
    ("requested", "status", "body", "content_range"),
    [
        ("", 200, VIDEO, None),
        ("bytes=4-7", 206, b"ftyp", f"bytes 4-7/{len(VIDEO)}"),
        ("bytes=4-", 206, VIDEO[4:], f"bytes 4-{len(VIDEO) - 1}/{len(VIDEO)}"),
        ("bytes=-4", 206, b"rest of it"[-4:], f"bytes {len(VIDEO) - 4}-{len(VIDEO) - 1}/{len(VIDEO)}"),
        ("bytes=0-99999", 206, VIDEO, f"bytes 0-{len(VIDEO) - 1}/{len(VIDEO)}"),
        ("bytes=7-4", 200, VIDEO, None),
        ("lines=1-2", 200, VIDEO, None),
    ],
)
def test_a_video_is_sent_whole_or_in_part(
    client: Client, requested: str, status: int, body: bytes, content_range: str | None
):
    """A video is sent whole or in part, because browsers request ranges in order to seek."""
    seen = client.get(
        f"/api/replays/{PROJECT}/{MOBILE}/segments/0/video", **({"Range": requested} if requested else {})
    )

    assert (seen.status, seen.body) == (status, body)
    assert seen.headers.get("Content-Range") == content_range


@pytest.mark.parametrize("header", ["bytes=", "bytes=a-b", "bytes=1", "bytes=-", "bytes=1-2,4-5", "bytes=9-"])
def test_an_invalid_range_returns_the_whole_video(header: str):
    """If the requested range is invalid for a video of nine bytes, the whole video is sent."""
    assert byte_range(header, 9) is None
    assert byte_range("bytes=0-1", 0) is None


@pytest.mark.parametrize(
    ("path", "status", "error_text"),
    [
        ("/nowhere", 404, "not found"),
        (f"/api/replays/{PROJECT}/{'e' * 32}", 404, "no replay"),
        (f"/api/replays/{PROJECT}/{MOBILE}/segments/9", 404, "segment 9"),
        (f"/api/replays/{PROJECT}/{HOLED}/segments/3", 404, "segment 3"),
        (f"/api/replays/{PROJECT}/{HOLED}/segments/0/video", 404, "segment 0 has no video"),
        (f"/api/replays/{PROJECT}/{SPOILED}/segments/1", 422, "not a zlib stream"),
    ],
)
def test_an_error_is_sent_as_json(client: Client, path: str, status: int, error_text: str):
    """An error is sent as JSON, so that the page can show it."""
    seen = client.get(path)

    assert seen.status == status
    assert error_text in seen.error


def test_an_unavailable_server_is_named_on_the_page(library: Library):
    """If a server is unavailable, the response is 503 with the server's name."""
    settings = library.settings.model_copy(update={"clickhouse_url": "http://127.0.0.1:1"})
    with served(settings) as client:
        seen = client.get("/api/replays")

    assert seen.status == 503
    assert seen.error.startswith("clickhouse: ")
