"""Messages designed to exhaust memory pass through the real reader: each becomes a dead letter or a row, without a
crash.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ingest.testing.messages import envelope, frame, video_recording
from tasks.units import MiB
from tests.kit.whole_system import System

pytestmark = pytest.mark.timeout(240)
EVENT = b'{"type":3,"timestamp":1790000000000,"data":{"source":1}}'
# The reader with its libraries uses about 80 MiB; measured peaks are 183 MiB (100 MiB inflated) and 205 MiB (a
# million events). The limit leaves a margin for other interpreters and allocators.
PEAK_BYTES_MAX = 400 * MiB


def blank_array(inflated_bytes: int) -> bytes:
    """Returns an array of blanks, which compresses to a thousandth of its size."""
    packer = zlib.compressobj(9)
    block = b" " * MiB
    whole, rest = divmod(inflated_bytes - 2, MiB)
    parts = [packer.compress(b"["), *(packer.compress(block) for _ in range(whole))]
    return b"".join([*parts, packer.compress(block[:rest] + b"]"), packer.flush()])


def sent(replay: int, body: bytes) -> bytes:
    return envelope(frame(body), replay_id=f"{replay:032x}")


HUGE: dict[str, tuple[str, Callable[[int], bytes]]] = {
    # Maps the name of each message to a pair: the reason for the message's dead letter ("" if the message becomes
    # a row), and a function that builds the message.
    "100 MiB of 100 kB": ("", lambda replay: sent(replay, blank_array(100 * MiB))),
    "101 MiB of 100 kB": ("body_too_large", lambda replay: sent(replay, blank_array(101 * MiB))),
    "nested 100,000 deep": ("", lambda replay: sent(replay, zlib.compress(b"[" * 100_000 + b"]" * 100_000))),
    "an event nested 100,000 deep": (
        "",
        lambda replay: sent(
            replay, zlib.compress(b'[{"type":5,"data":' + b"[" * 100_000 + b"]" * 100_000 + b"}]")
        ),
    ),
    "a message of 16 MB": ("", lambda replay: video_recording(os.urandom(15_990_000), replay_id=f"{replay:032x}")),
    "a million events": (
        "",
        lambda replay: sent(replay, zlib.compress(b"[" + b",".join([EVENT] * 1_000_000) + b"]")),
    ),
}


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system that has ingested ordinary messages, and whose deadlines are long enough for large messages."""
    with System(tmp_path_factory.mktemp("system"), sink_timeout_seconds="20", flush_deadline_seconds="60") as made:
        made.load(40)
        made.wait_until_committed()
        yield made


def test_huge_messages_are_rows_or_dead_letters_in_bounded_memory(system: System, tmp_path: Path) -> None:
    """Huge messages that are sent one by one through one reader become rows or dead letters.

    The reader logs its peak memory after each message.
    """
    ordinary = system.reader_peak_bytes()
    print(f"\n{'ordinary messages':<30} peak {ordinary / MiB:6.0f} MiB")
    for replay, (what, (_, make)) in enumerate(HUGE.items(), start=1):
        value = make(replay)
        system.send(value)
        system.wait_until_committed()
        print(f"{what:<30} peak {system.reader_peak_bytes() / MiB:6.0f} MiB, {len(value):>10,} bytes sent")

    assert system.reader.starts == 1
    assert system.reader_peak_bytes() < PEAK_BYTES_MAX
    assert system.metric("replays_reader_batches_parked_total") == 0
    letters: Any = system.json("dlq", "ls", "--limit", "100")["letters"]
    for replay, (what, (reason, _)) in enumerate(HUGE.items(), start=1):
        rows = system.query(f"SELECT count() FROM replay_segments WHERE replay_id = toUUID('{replay:032x}')")
        assert rows[0][0] == (0 if reason else 1), what
        assert not reason or reason in {letter["reason"] for letter in letters}, what
