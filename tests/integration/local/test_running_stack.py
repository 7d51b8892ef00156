"""Commands without configured servers use the running local stack and say so.

Configured servers are not replaced.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest.local import background
from ingest.local.servers.redis import send_command
from ingest.local.stack import Stack
from tests.kit.paths import ROOT


@pytest.fixture(scope="module")
def stack_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A running stack of two servers."""
    place = tmp_path_factory.mktemp("running")
    background.start_stack(place, parts=["redis", "clickhouse"])
    yield place
    background.stop_stack(place)


def run(place: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a command with only the given REPLAYS_* variables, and with `place` as the default directory of the
    stack.
    """
    plain = {name: value for name, value in os.environ.items() if not name.startswith("REPLAYS_")}
    return subprocess.run(
        [sys.executable, "-m", "ingest.cli", *arguments],
        env={**plain, "PYTHONPATH": str(ROOT), "REPLAYS_LOCAL_DIRECTORY": str(place), **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def notice(place: Path) -> str:
    return f"replays-ingest: no servers are configured; using the local stack in {place}\n"


@pytest.mark.parametrize("arguments", ["batches ls --json", "status --json"])
def test_a_command_uses_the_running_stack_and_says_so(stack_directory: Path, arguments: str):
    """One line on standard error names the stack, and standard output contains only the result."""
    result = run(stack_directory, *arguments.split())

    assert (result.returncode, result.stderr) == (0, notice(stack_directory))
    assert result.stdout.startswith("{")


@pytest.mark.parametrize("arguments", ["top", "status", "check"])
def test_on_the_running_stack_the_advice_works_in_a_terminal_without_its_variables(
    stack_directory: Path, arguments: str
):
    """Without the stack's variables, the advice is `local up --all`, because a worker would not find the stack.
    If the variables are set, the advice is to start a worker.
    """
    found = run(stack_directory, *arguments.split(), COLUMNS="250")
    state = background.status(stack_directory)
    assert state is not None
    configured = run(stack_directory, *arguments.split(), COLUMNS="250", **state.settings)

    assert "start `replays-ingest local up --all`" in found.stdout
    assert "celery" not in found.stdout
    assert "start `celery -A tasks worker`" in configured.stdout


def test_a_command_that_destroys_says_where_it_acts(stack_directory: Path):
    """A destructive command prints which stack it acts on; without `--yes` it is refused before it looks for a
    stack.
    """
    refused = run(stack_directory, "batches", "abandon", "t-0-1-2", "--reason", "why not")
    said = run(stack_directory, "batches", "abandon", "t-0-1-2", "--reason", "why not", "--yes")

    assert (refused.returncode, "local stack" in refused.stderr) == (2, False)
    assert said.stderr.startswith(notice(stack_directory))


@pytest.mark.parametrize(
    "variables",
    [
        {"REPLAYS_REDIS_URL": "redis://127.0.0.1:1/0"},
        {"REPLAYS_KAFKA_BROKERS": "127.0.0.1:1", "REPLAYS_REDIS_URL": "redis://127.0.0.1:1/0"},
        {"REPLAYS_CLICKHOUSE_URL": "http://127.0.0.1:1", "REPLAYS_REDIS_URL": "redis://127.0.0.1:1/0"},
    ],
    ids=lambda variables: next(iter(variables)),
)
def test_configured_servers_are_never_replaced(stack_directory: Path, variables: dict[str, str]):
    """If any server is configured, no server is taken from the stack."""
    result = run(stack_directory, "batches", "ls", **variables)

    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert "127.0.0.1:1" in result.stderr


def test_a_settings_file_counts_as_configured(stack_directory: Path, tmp_path: Path):
    """The servers in a settings file count as configured, so the local stack is not used."""
    file = tmp_path / "replays.toml"
    file.write_text('redis_url = "redis://127.0.0.1:1/0"\n')

    result = run(stack_directory, "--settings", str(file), "batches", "ls")

    assert (result.returncode, "local stack" in result.stderr) == (1, False)


def test_commands_that_use_no_server_do_not_mention_a_stack(stack_directory: Path):
    """Help, `local` and `inspect` need no servers, and the reader never joins a stack's consumer group unless told
    to, so none of these commands mentions a stack.
    """
    message = ROOT / "README.md"
    found = [
        run(stack_directory, *words)
        for words in (("--help",), ("local", "status"), ("inspect", str(message)), (), ("status", "--help"))
    ]

    assert not any("using the local stack" in result.stderr for result in found)


def test_without_a_stack_an_unreachable_server_is_one_readable_line(tmp_path: Path):
    """Without a stack, an unreachable server is reported in one line, without the client library's text about
    pools and retries.
    """
    nowhere = {"REPLAYS_CLICKHOUSE_URL": "http://127.0.0.1:1", "REPLAYS_GCS_ENDPOINT": "http://127.0.0.1:1"}

    result = run(tmp_path, "replays", "ls", **nowhere)

    assert result.returncode == 1
    assert result.stderr == (
        "replays-ingest: clickhouse: http://127.0.0.1:1 is unreachable (Connection refused): start it, or correct "
        "REPLAYS_CLICKHOUSE_URL\n"
    )


def test_redis_starts_empty_with_a_broker_that_keeps_no_messages(tmp_path: Path):
    """If the broker keeps no messages, Redis starts empty, because old parked batches and done marks would refer
    to a log that no longer exists.

    If the broker keeps its messages, Redis keeps its state across restarts, but starts empty with another broker.
    """

    def keys_of(kafka: str) -> list[str]:
        environ = {"REPLAYS_LOCAL_KAFKA": kafka} if kafka else {}
        with Stack(tmp_path, environ=environ) as stack:
            stack.start(["kafka", "redis"])
            stack.start(["kafka", "redis"])  # a running Redis is not touched
            port = stack.servers["redis"].port
            found: list[str] = send_command(port, ["KEYS", "*"])
            send_command(port, ["SET", "of", kafka or "tansu"])
        return found

    assert keys_of("") == []
    assert keys_of("") == []
    assert keys_of("broker:9092") == []
    assert keys_of("broker:9092") == ["of"]
    assert keys_of("other:9092") == []
