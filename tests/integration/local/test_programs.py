"""`local up --all` starts the whole system, commands find it from another folder, and one command stops it."""

from __future__ import annotations

import base64
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from click.testing import CliRunner

from ingest.cli.main import main
from ingest.local import background
from ingest.local.compare.offsets import CommittedOffsets
from ingest.local.launch import settings_of
from ingest.local.load.produce import PROFILES, produce
from ingest.local.logs import Tail
from ingest.local.programs import LOGIN_VARIABLE, PROGRAMS
from ingest.local.servers.processes import group_is_alive, wait_until
from tasks.migrate import migrate


def status_of(url: str, login: str = "") -> int:
    """Returns the HTTP status of a GET request with an optional login."""
    headers = {"Authorization": "Basic " + base64.b64encode(login.encode()).decode()} if login else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_the_whole_system_starts_ingests_and_stops(tmp_path: Path):
    """A stack that runs only the servers still has everything that programs and other commands need. When the
    programs are started too, the whole system ingests and commits a generated load, serves every page after one
    login, and stops.
    """
    place, printed = tmp_path / "stack", list[str]()
    servers = background.start_stack(place, progress=printed.append)
    try:
        assert printed[-1] == "migrate    done"
        steps = list(migrate(settings_of(dict(servers.settings)), dry_run=True, topics=True))
        assert len(steps) > len(("clickhouse", "bigquery", "gcs", "kafka"))
        assert [line for line in steps if ": would " in line] == []

        state = background.start_stack(place, programs=True)
        settings = settings_of(dict(state.settings))
        made = produce(settings, PROFILES["small"], 20, 1, manifest_path=tmp_path / "manifest.jsonl")
        ends = {(settings.kafka_topic, partition): end for partition, end in made.ends.items()}
        committed = CommittedOffsets(settings)
        wait_until(lambda: committed.of(sorted(ends)) == ends, 60, "the load to be committed")
        committed.close()

        login = state.settings[LOGIN_VARIABLE]
        assert {status_of(state.pages[name]) for name in ("web", "flower")} == {401}
        assert {status_of(state.pages[name], login) for name in ("web", "flower", "operator")} == {200}
        assert set(PROGRAMS) <= {part.name for part in state.parts}
        assert background.start_stack(place, programs=True).pages == state.pages
        # This file contains Flower's task history, which survives `down`.
        assert (place / "flower.sqlite").stat().st_mode & 0o777 == 0o600

        shown = CliRunner().invoke(main, ["local", "logs", "--directory", str(place), "reader", "--lines", "1000"])
        assert "reader_started" in shown.output
        listed = CliRunner().invoke(main, ["local", "status", "--directory", str(place)])
        assert login.partition(":")[2] in listed.output
    finally:
        assert background.stop_stack(place) == place

    assert not any(group_is_alive(part.pid) for part in state.parts)
    assert background.login_of(place) == login


def test_an_unknown_log_is_refused_with_the_available_names(tmp_path: Path):
    """An unknown log name gives exit code 2 and an error that lists the available names."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "reader.log").write_text("one\ntwo\n")

    wrong = CliRunner().invoke(main, ["local", "logs", "--directory", str(tmp_path), "raeder"])
    right = CliRunner().invoke(main, ["local", "logs", "--directory", str(tmp_path), "--lines", "1"])

    assert (wrong.exit_code, right.exit_code) == (2, 0)
    assert "reader" in wrong.output
    assert right.output == "two\n"


def test_a_log_is_followed_by_whole_lines(tmp_path: Path):
    """When a log is followed, a line that is still being written is printed once it is complete."""
    path = tmp_path / "reader.log"
    path.write_bytes(b"one\nhal")
    tail = Tail(path)

    assert tail.last(5) == ["one"]
    with path.open("ab") as log:
        log.write(b"f\n\x1b[31mthree\x1b[0m\n")
    assert list(tail.new()) == ["half", "three"]
    assert list(tail.new()) == []


def test_a_running_stack_is_found_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """If a stack is running, starting a stack in another folder returns the running stack and its location."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("REPLAYS_LOCAL_DIRECTORY", raising=False)
    checkout, elsewhere = tmp_path / "checkout", tmp_path / "elsewhere"
    for folder in (checkout, elsewhere):
        folder.mkdir()
    (checkout / "pyproject.toml").touch()
    (checkout / "celeryconfig.py").touch()
    printed: list[str] = []
    monkeypatch.chdir(checkout)
    first = background.start_stack(parts=["statsd"])
    try:
        monkeypatch.chdir(elsewhere)
        second = background.start_stack(parts=["statsd"], progress=printed.append)

        assert second == first
        assert printed == [f"already up in {checkout / '.local' / 'stack'}"]
    finally:
        assert background.stop_stack() == checkout / ".local" / "stack"
    assert background.status() is None
