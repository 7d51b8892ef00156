"""Reading a recording that inflates to a huge size takes a bounded amount of memory, and omissions are
reported.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from ingest.settings import Settings
from tasks.units import MiB
from tests.kit.stored_replays import message, store_replays
from tests.kit.web_pages import Client, signed_in

INFLATED_BYTES = 10 * MiB
# A command that reads no recording uses 110 to 150 MiB. Before memory use was bounded, a command that read the
# first shape used 400 MiB more.
MEMORY_BYTES_MAX = 330 * MiB
REPLAY, PROJECT, AT_MS = "6" * 32, 7, 1_780_000_000_000
_BREADCRUMB = (
    b'{"type":5,"timestamp":1780000000000,"data":{"tag":"breadcrumb","payload":{"category":"console","data":'
)
_MEMORY = (
    b'{"type":5,"timestamp":1780000000000,"data":{"tag":"performanceSpan","payload":{"op":"memory",'
    b'"data":{"memory":{"usedJSHeapSize":1,"totalJSHeapSize":2}}}}}'
)
SHAPES = (
    b"[" + b"0," * (INFLATED_BYTES // 2) + b"0]",
    b"[" + b"{}," * (INFLATED_BYTES // 3) + b"{}]",
    b"[" + _BREADCRUMB + b"[" + b"[]," * (INFLATED_BYTES // 3) + b"[]]}}}]",
    b"[" + b",".join([_MEMORY] * (INFLATED_BYTES // (len(_MEMORY) + 1))) + b"]",
)
# This is not ru_maxrss, because the initial value of that field is inherited from the parent process.
MEASURE_PROGRAM = """
import sys
from ingest.cli.main import main
try:
    main(sys.argv[1:])
finally:
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM:")]
    print(line.split()[1], file=sys.stderr)
"""


@dataclass(frozen=True)
class Measured:
    """The output of a command and its peak memory."""

    out: str
    memory_bytes: int
    code: int
    error_bytes: int


@pytest.fixture(scope="module")
def bombs(stored: Settings) -> Settings:
    """The settings of stores that contain a replay with one segment per shape, followed by a harmless segment."""
    last = json.dumps([{"type": 4, "timestamp": AT_MS, "data": {"href": "https://shop.example/", "width": 1}}])
    bodies = [zlib.compress(shape) for shape in (*SHAPES, last.encode())]
    assert max(map(len, bodies)) < 200_000
    store_replays(
        stored, [message(REPLAY, number, body, project_id=PROJECT) for number, body in enumerate(bodies)]
    )
    return stored


def run(env: dict[str, str], *arguments: str, given: bytes = b"") -> Measured:
    """Runs one command in a separate process."""
    result = subprocess.run(
        [sys.executable, "-c", MEASURE_PROGRAM, *arguments],
        env={**os.environ, **env},
        input=given,
        capture_output=True,
        check=False,
    )
    return Measured(
        result.stdout.decode(), int(result.stderr.split()[-1]) * 1024, result.returncode, len(result.stderr)
    )


@contextmanager
def pages(env: dict[str, str]) -> Iterator[tuple[Client, int]]:
    """Serves the pages from a separate process, and returns a signed-in client and the process id."""
    command = [sys.executable, "-m", "ingest.cli", "web", "--port", "0"]
    with subprocess.Popen(command, env={**os.environ, **env}, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"(http://[^/]+)(/\S+)", process.stdout.readline())
            assert found is not None
            yield signed_in(found[1], found[2]), process.pid
        finally:
            process.terminate()


def peak_bytes(pid: int) -> int:
    """Returns the peak memory of the process so far."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def test_events_reads_bombs_in_bounded_memory(bombs: Settings, env: dict[str, str]):
    """`events` uses bounded memory to read segments that inflate to 100 times their size.

    The remainder of the replay can be read from the next segment on.
    """
    result = run(env, "events", REPLAY, "--json")

    found = json.loads(result.out)
    assert result.memory_bytes < MEMORY_BYTES_MAX
    assert "0" not in found["unreadable"]
    assert "1" in found["cut"]
    assert found["next_segment"] == 2


def test_inspect_reads_bombs_in_bounded_memory(env: dict[str, str]):
    """`inspect` reads such messages in bounded memory, because it counts elements only up to a limit."""
    for shape in SHAPES[:2]:
        result = run(env, "inspect", "-", "--json", given=message(REPLAY, 0, zlib.compress(shape)))
        assert result.memory_bytes < MEMORY_BYTES_MAX
        assert json.loads(result.out)["recording"]["json_bytes"] == len(shape)


@pytest.mark.parametrize("arguments", [["erase", "--project", "7"], ["backfill"]])
@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no endless file")
def test_an_endless_list_of_replays_is_read_in_bounded_memory(env: dict[str, str], arguments: list[str]):
    """An endless list of replays and a very long line are usage errors; the line is not repeated in full."""
    endless = run(env, *arguments, "--list", "/dev/zero", "--dry-run")
    long = run(env, *arguments, "--list", "-", "--dry-run", given=b"a" * MiB)

    assert (endless.code, long.code) == (2, 2)
    assert max(endless.memory_bytes, long.memory_bytes) < MEMORY_BYTES_MAX
    assert max(endless.error_bytes, long.error_bytes) < 1000


def test_the_pages_read_bombs_in_bounded_memory(bombs: Settings, env: dict[str, str]):
    """The pages use bounded memory for the timeline (which is read page by page), for the player's data, and for
    the raw bytes.
    """
    path = f"/api/replays/{PROJECT}/{REPLAY}"
    with pages(env) as (client, pid):
        first: int | None = 0
        marks = []
        while first is not None:
            page = client.get(f"{path}/timeline?from_segment={first}").json
            marks += page["marks"]
            assert page["next_segment"] is None or page["next_segment"] > first
            first = page["next_segment"]
        played = [client.get(f"{path}/segments/{number}") for number in (0, 1, 4)]
        raw = client.get(f"{path}/segments/0?raw=1")

        assert peak_bytes(pid) < MEMORY_BYTES_MAX
    assert [mark["kind"] for mark in marks] == ["page"]
    assert [(seen.status, len(seen.json)) for seen in played] == [(200, 0), (200, 0), (200, 1)]
    assert "too expensive" in played[1].headers["X-Replays-Left-Out"]
    assert len(raw.body) == len(SHAPES[0])
