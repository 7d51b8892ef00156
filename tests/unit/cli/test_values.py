"""Invalid values on the command line cause a one-line error and exit code 2, and no server is contacted."""

from __future__ import annotations

import getpass
import subprocess
import sys
from pathlib import Path

import click
import pytest

from ingest.cli.listing import leaf_commands
from ingest.cli.main import main
from ingest.cli.values import BatchId, LetterId, OperatorName, OutputDirectory, OutputFile, ReplayId, login
from tests.kit.commands import command
from tests.kit.paths import ROOT

REPLAY_ID = "0" * 32
NO_SERVERS = {
    "REPLAYS_KAFKA_BROKERS": "127.0.0.1:1",
    "REPLAYS_REDIS_URL": "redis://127.0.0.1:1/0",
    "REPLAYS_CLICKHOUSE_URL": "http://127.0.0.1:1",
    "REPLAYS_GCS_ENDPOINT": "http://127.0.0.1:1",
}
# Parameters that accept any text, or whose text the command checks itself.
ANY_TEXT = {
    ("batches abandon", "reason"),
    ("dlq ls", "reason"),
    ("dlq replay", "reason"),
    ("erase", "user"),
    ("events", "kinds"),
    ("local logs", "name"),
    ("replays ls", "release"),
    ("replays ls", "text"),
    ("try", "host"),
}
# Directories that these commands only read.
READ_ONLY_PATHS = {("local down", "directory"), ("local logs", "directory"), ("local status", "directory")}

WRONG = [
    (("batches", "show", "nonsense"), "is not the id of a batch"),
    (("batches", "show", ""), "is not the id of a batch"),
    (("batches", "retry", "topic-0-5"), "is not the id of a batch"),
    (("batches", "abandon", "../x-0-1-2", "--reason", "test", "--yes"), "is not the id of a batch"),
    (("dlq", "show", "nonsense"), "is not the id of a dead letter"),
    (("dlq", "show", ""), "is not the id of a dead letter"),
    (("dlq", "replay", "--id", "0-x"), "is not the id of a dead letter"),
    (("dlq", "ls", "--sink", "s3"), "is not one of"),
    (("events", "nonsense"), "is not a replay id"),
    (("fetch", ""), "is not a replay id"),
    (("replays", "show", "a" * 33), "is not a replay id"),
    (("erase", "nonsense", "--project", "1", "--yes"), "is not a replay id"),
    (("erase", "--list", "/dev/null", "--project", "1", "--yes"), "contains no replay id"),
    (("erase", REPLAY_ID, "--project", "1", "--yes", "--certificate", "{missing}/c.json"), "cannot be written"),
    (("fetch", REPLAY_ID, "--output", "/dev/null/x"), "cannot be written"),
    (("top", "--svg", "{missing}/top.svg"), "cannot be written"),
    (("load", "--manifest", "{missing}/m.jsonl"), "cannot be written"),
    (("demo", "--directory", "/proc/replays"), "cannot be written"),
    (("local", "up", "--directory", "/proc/replays"), "cannot be written"),
    (("tenants", "kill", "5", "--yes", "--by", " "), "printable characters"),
    (("tenants", "kill", "5", "--yes", "--by", "\x1b[31mx"), "printable characters"),
    (("tenants", "kill", "5", "--yes", "--by", "x" * 201), "printable characters"),
    (("tenants", "limit", str(2**64), "--per-second", "1"), "is not in the range"),
    (("erase", REPLAY_ID, "--yes", "--project", str(2**64)), "is not in the range"),
    (("shadow", "--partition", "0", "--start", "5", "--stop", "5"), "range [5, 5) is empty"),
    (("reconcile", "--partition", "0", "--start", "5", "--stop", "3"), "range [5, 3) is empty"),
    (("reconcile", "--since", "1h", "--until", "2h"), "time window is empty"),
]


@pytest.mark.parametrize(("arguments", "said"), WRONG, ids=lambda value: " ".join(value)[:60])
def test_a_wrong_value_is_reported_in_one_line_with_exit_code_2(
    arguments: tuple[str, ...], said: str, tmp_path: Path
):
    """A wrong id, name, path or range is a usage error, found without any server."""
    missing = str(tmp_path / "missing")

    result = command(NO_SERVERS, *(text.format(missing=missing) for text in arguments))

    assert (result.code, result.out) == (2, "")
    assert said in result.err.splitlines()[-1]
    assert "Traceback" not in result.err
    assert "\x1b" not in result.err


def test_every_free_text_is_known():
    """A parameter that accepts any text must be listed in ANY_TEXT, so that whoever adds one considers invalid
    values.
    """
    found = {
        (path, parameter.name)
        for path, leaf in leaf_commands(main)
        for parameter in leaf.params
        if parameter.type is click.STRING
    }

    assert found == ANY_TEXT


def test_every_path_that_a_command_writes_is_checked_before_the_command_runs():
    """Without this check, a command would find that it cannot write the file only after all its work, or after an
    irreversible change.
    """
    found = {
        (path, parameter.name)
        for path, leaf in leaf_commands(main)
        for parameter in leaf.params
        if type(parameter.type) is click.Path
    }

    assert found == READ_ONLY_PATHS


def test_checking_an_output_path_leaves_nothing_behind(tmp_path: Path):
    """A path is checked with a temporary file or directory; an existing file keeps its content."""
    existing = tmp_path / "existing"
    existing.write_text("content")

    assert OutputFile().convert(str(tmp_path / "new"), None, None) == tmp_path / "new"
    assert OutputFile().convert(str(existing), None, None) == existing
    assert OutputDirectory().convert(str(tmp_path / "a" / "b"), None, None) == tmp_path / "a" / "b"

    assert [path.name for path in tmp_path.iterdir()] == ["existing"]
    assert existing.read_text() == "content"


def test_correct_values_are_converted():
    """Ids are returned in the form in which they are stored."""
    assert ReplayId().convert("0123ABCD-0000-0000-0000-000000000000", None, None) == "0123abcd" + "0" * 24
    assert LetterId().convert("0-17", None, None) == "0-17"
    assert BatchId().convert("ingest-replay.recordings-3-10-20", None, None) == "ingest-replay.recordings-3-10-20"
    assert OperatorName().convert(" Zoë ", None, None) == "Zoë"


def test_a_user_without_a_name_is_recorded_by_number(monkeypatch: pytest.MonkeyPatch):
    """In a container that runs with an arbitrary user id, the user database has no name for this id."""

    def unknown() -> str:
        raise KeyError("getpwuid(): uid not found: 10001")

    monkeypatch.setattr(getpass, "getuser", unknown)

    assert login().startswith("uid ")


@pytest.mark.parametrize(
    "arguments", [("--help",), ("completion", "bash"), ("inspect", "--json", "/etc/hostname")]
)
def test_output_to_a_full_disk_is_reported_in_one_line(arguments: tuple[str, ...]):
    """A command whose output cannot be written exits with 1 and prints one line."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "ingest.cli", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            text=True,
            check=False,
        )

    assert done.returncode == 1
    assert done.stderr == "replays-ingest: standard output: No space left on device\n"


def test_a_list_that_is_not_text_is_a_wrong_value(tmp_path: Path):
    """A binary file contains no replay id; its bytes are not printed as they are."""
    path = tmp_path / "list"
    path.write_bytes(bytes(range(256)))

    result = command(NO_SERVERS, "erase", "--list", str(path), "--project", "1", "--yes")

    assert result.code == 2
    assert "is not a replay id" in result.err.splitlines()[-1]
    assert "\x1b" not in result.err


def test_an_address_that_is_not_of_this_machine_is_reported_before_anything_starts():
    """`try` prints one line to standard error and exits with 1."""
    result = command({}, "try", "--host", "192.0.2.1", "--port", "0")

    assert (result.code, result.out) == (1, "")
    assert "cannot listen on 192.0.2.1:0" in result.err
    assert "choose another --host or --port" in result.err
