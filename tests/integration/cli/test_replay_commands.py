"""`replays`, `events` and `fetch` read replays, and print text for people or JSON for scripts."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from ingest.cli.main import main
from ingest.web.timeline import KINDS
from tests.kit.commands import CommandResult, command
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


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--project", str(PROJECT)], {MOBILE, HOLED, SPOILED, SHARED}),
        (["--project", str(PROJECT), "--since", "1d"], {MOBILE, HOLED, SHARED}),
        (["--release", "shop@old"], {SPOILED}),
        (["--text", "shop.example/3", "--errors"], {HOLED}),
        (["--rage", "--project", str(PROJECT)], set()),
    ],
)
def test_replays_are_listed(library: Library, options: list[str], expected: set[str]):
    """Replays are listed as text and as JSON, with the same contents."""
    text = command(library.env, "replays", "ls", *options)
    listed = command(library.env, "replays", "ls", *options, "--json").json

    assert {entry["replay_id"] for entry in listed["replays"]} == expected
    assert not listed["more"]
    assert expected or text.out == "no replay matches\n"
    assert {line.split()[0] for line in text.out.splitlines()[1:] if line.strip()} == expected


def test_a_truncated_list_is_marked_as_truncated(library: Library):
    """The last line of a truncated list says that there are more replays."""
    result = command(library.env, "replays", "ls", "--limit", "2", "--dead")
    cut = command(library.env, "replays", "ls", "--limit", "1", "--dead")

    assert "more replays match" not in result.out
    assert "more replays match: raise --limit or add conditions" in cut.out


def test_one_replay_is_shown_with_its_segments(library: Library):
    """`replays show` prints facts, then one line per segment with its missing data, then anomalies."""
    shown = command(library.env, "replays", "show", HOLED)
    reported = command(library.env, "replays", "show", HOLED, "--json").json

    assert shown.code == 0
    assert "missing        2-3" in shown.out
    assert "duplicates     0" in shown.out
    for state in ("stored", "missing", "no_object", "no_row"):
        assert f" {state} " in shown.out
    assert f"30/{PROJECT}/{HOLED}/notes is not a segment" in shown.out
    assert [entry["state"] for entry in reported["ingestion"]["segments"]][2:] == [
        "missing",
        "no_object",
        "no_row",
    ]
    assert reported["replay"]["segments"] == 3


def test_events_are_listed(library: Library):
    """`events` prints one line per mark and names unreadable segments; other kinds of events are printed only
    on request.
    """
    everything = command(library.env, "events", library.shop_id, "--json").json
    rage = command(library.env, "events", library.shop_id, "--kind", "rage_click")
    spoiled = command(library.env, "events", SPOILED)

    assert everything["counts"]["network"] == 6
    (line,) = [line for line in rage.out.splitlines() if "rage_click" in line]
    assert "button#rage.btn" in line
    assert "unreadable segments: 1" in spoiled.out
    assert "missing segments: 2-3" in command(library.env, "events", HOLED).out
    nothing = command(library.env, "events", SPOILED, "--kind", "rage_click")
    assert nothing.out.splitlines()[-1] == "no event matches"


def test_a_session_is_found_and_its_evidence_exported(library: Library):
    """A session is found by a search, and `events --around` accepts the event id from the search result."""
    found = command(library.env, "replays", "find", "--selector", "#rage", "--text", "rage", "--json").json
    (shop,) = [entry for entry in found["replays"] if entry["replay_id"] == library.shop_id]
    event = shop["matches"][0]["event"]
    around = ("events", library.shop_id, "--around", event, "--window", "1s")

    assert event in [mark["event"] for mark in command(library.env, *around, "--json").json["marks"]]
    assert "button#rage.btn" in command(library.env, *around).out
    assert event in command(library.env, "replays", "find", "--selector", "#rage", "--text", "rage").out
    for wrong in (["--selector", "a b"], ["--error", "x"], ["--text", " "]):
        assert command(library.env, "replays", "find", *wrong).code == 2
    assert command(library.env, "events", library.shop_id, "--around", "soon").code == 2


def test_events_of_an_unknown_kind_are_refused(library: Library):
    """For an unknown kind, the command exits with code 2 and lists the available kinds, which include every kind
    in the recordings.
    """
    result = command(library.env, "events", HOLED, "--kind", "nope")
    reported = command(library.env, "events", HOLED, "--json").json

    assert result.code == 2
    assert "nope" in result.err
    assert "rage_click" in result.err
    assert set(reported["counts"]) <= KINDS


def test_events_fit_the_width_of_the_terminal(library: Library):
    """`events` prints one line per event, and none is longer than COLUMNS."""
    result = CliRunner().invoke(main, ["events", HOLED], env={**library.env, "COLUMNS": "60"})

    assert result.exit_code == 0
    assert max(map(len, result.output.splitlines())) <= 60


def test_a_replay_is_downloaded(library: Library, tmp_path: Path):
    """`fetch` downloads the replay's events as sent, and its videos, and names missing or unreadable segments."""
    shop = command(library.env, "fetch", library.shop_id, "--output", str(tmp_path), "--json").json
    mobile = command(library.env, "fetch", MOBILE, "--output", str(tmp_path))
    part = command(library.env, "fetch", SPOILED, "--segment", "0", "--segment", "1", "--output", str(tmp_path))
    holed = command(library.env, "fetch", HOLED, "--output", str(tmp_path))

    for number, body in enumerate(library.shop.bodies):
        assert (tmp_path / f"{library.shop_id}-{number:04}.json").read_bytes() == inflated(body)
    assert [file["segment_id"] for file in shop["written"]] == list(range(8))
    assert (tmp_path / f"{MOBILE}-0000.mp4").read_bytes() == VIDEO
    assert len(mobile.out.splitlines()) == 2
    assert "segment 1 is unreadable: not a zlib stream" in part.out
    assert (part.code, (tmp_path / f"{SPOILED}-0001.json").exists()) == (0, False)
    assert "missing segments: 2-3" in holed.out


def test_a_download_is_readable_by_its_user_only(library: Library, tmp_path: Path):
    """Only the user who downloaded a file can read it, although the usual umask makes new files readable by
    everyone.

    Recordings are personal data.
    """
    before = os.umask(0o022)
    try:
        result = command(library.env, "fetch", library.shop_id, "--output", str(tmp_path / "new" / "folder"))
    finally:
        os.umask(before)

    assert result.code == 0
    made = [tmp_path / "new", *(tmp_path / "new").rglob("*")]
    assert len(made) == 10
    assert [path for path in made if path.stat().st_mode & 0o077] == []


def failed(result: CommandResult) -> str:
    """Runs a command that fails, and returns its error line."""
    assert result.code == 1
    (line,) = result.err.splitlines()
    return line


def test_a_missing_replay_or_server_is_reported_in_one_line(library: Library, tmp_path: Path):
    """A command exits with 1 and prints one line if the replay or event does not exist, or if there is nothing to
    download.

    It also does so if an id exists in several projects, or if a server is unavailable.
    """
    env = library.env

    assert "no replay" in failed(command(env, "replays", "show", "e" * 32))
    assert command(env, "events", "nonsense").code == 2
    assert "choose one: [7, 8]" in failed(command(env, "replays", "show", SHARED))
    assert command(env, "replays", "show", SHARED, "--project", str(OTHER_PROJECT)).code == 0
    assert "no stored segments match" in failed(
        command(env, "fetch", MOBILE, "--segment", "7", "--output", str(tmp_path))
    )
    away = {**env, "REPLAYS_CLICKHOUSE_URL": "http://127.0.0.1:1"}
    assert "clickhouse: " in failed(command(away, "replays", "ls"))


def test_a_wrong_option_is_a_usage_error(library: Library):
    """A wrong option gives exit code 2 and examples of valid values."""
    result = command(library.env, "replays", "ls", "--since", "yesterday")

    assert result.code == 2
    assert "7d" in result.err


def test_messages_are_inspected_before_they_are_ingested(library: Library, tmp_path: Path):
    """`inspect` shows what ingestion would write; a rejected message gives exit code 1."""
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_bytes(library.shop.values[4])
    bad.write_bytes(b"\xc1")

    reported = command(library.env, "inspect", str(good), "--json")
    refused = command(library.env, "inspect", str(bad))

    assert reported.code == 0
    assert str(RECORDED_PROJECT) in json.dumps(reported.json)
    assert (refused.code, "not_msgpack" in refused.out) == (1, True)


@pytest.mark.parametrize("arguments", ["replays ls", "replays find", f"replays show {HOLED}"])
def test_lists_of_replays_fit_80_columns(library: Library, arguments: str):
    """Each replay or segment is one line of at most 80 columns, and ids are not truncated."""
    wide = CliRunner().invoke(main, arguments.split(), env={**library.env, "COLUMNS": "250"}).output
    narrow = CliRunner().invoke(main, arguments.split(), env={**library.env, "COLUMNS": "80"}).output

    rows = [line for line in narrow.splitlines() if "://" not in line and "more replays" not in line]
    assert max(map(len, rows)) <= 80
    assert len(narrow.splitlines()) == len(wide.splitlines())
    assert re.findall(r"\b[0-9a-f]{32}\b", narrow) == re.findall(r"\b[0-9a-f]{32}\b", wide)
