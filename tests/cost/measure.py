"""Measures the CPU time and the memory of parsing one message, and the CPU time of the minimum work (the floor).

    python -m tests.cost.measure FILE     one message, measured in this process, as JSON

CPU time is measured in this process, and memory in a separate process. The runs of the parser alternate with runs
of the minimum work, so that a busy machine affects both CPU times equally; each CPU time is the lowest of several
runs. `docs/cost.md` defines the floor.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
from isal import igzip_lib, isal_zlib

from ingest.core.model import Message, TopicPartition
from ingest.core.parse import ParseRules, parse
from ingest.core.parse.envelope import open_envelope
from ingest.core.parse.recording import inflate, split
from ingest.core.parse.rules import MessageRejected

RULES = ParseRules()
RATIO_MAX, CPU_SECONDS_BASE = 4.0, 0.050
MEMORY_RATIO_MAX, MEMORY_BYTES_BASE = 2.5, 64 * 1024 * 1024
ROUNDS = 3
MEASURE_SECONDS_MAX = 300

_skip = msgspec.json.Decoder(msgspec.Raw).decode
_skip_packed = msgspec.msgpack.Decoder(msgspec.Raw).decode


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a message, as CPU time in seconds and memory in bytes."""

    message_bytes: int
    raw_bytes: int
    floor_seconds: float
    seconds: float
    memory_bytes: int

    @property
    def ratio(self) -> float:
        """The CPU time of parsing minus the base cost allowed for every message, as a multiple of the floor."""
        return max(self.seconds - CPU_SECONDS_BASE, 0.0) / max(self.floor_seconds, 1e-4)

    @property
    def memory_ratio(self) -> float:
        """The memory for parsing minus the base memory allowed for every message, as a multiple of the inflated
        size."""
        return max(self.memory_bytes - MEMORY_BYTES_BASE, 0) / max(self.raw_bytes, self.message_bytes)


def floor_of(value: bytes) -> tuple[Callable[[], object], int]:
    """Returns (work, bytes of the recording).

    Calling `work` scans the message once, then inflates and scans its contents, using only the parser's inflater
    and scanners. Data that is not valid JSON counts as white space of the same size; data that is not msgpack is
    not counted.
    """
    work, raw_bytes = _floor_inside(value)
    try:
        _skip_packed(value)
    except (msgspec.DecodeError, RecursionError):
        return work, raw_bytes
    return lambda: (_skip_packed(value), work()), raw_bytes


def _floor_inside(value: bytes) -> tuple[Callable[[], object], int]:
    try:
        envelope = open_envelope(value)
        body = split(envelope.payload)[1]
    except MessageRejected:
        spaces = _scannable(value)
        return lambda: _skip(spaces), 0
    document = _scannable(envelope.replay_event or b"0")
    try:
        text = _scannable(inflate(body, RULES.inflated_bytes_max))
    except MessageRejected:
        return lambda: _inflated(body), len(_inflated(body))
    return lambda: (_skip(document), inflate(body, RULES.inflated_bytes_max), _skip(text)), len(text)


def _scannable(text: Any) -> Any:
    try:
        _skip(text)
    except (msgspec.DecodeError, RecursionError):
        return b" " * (len(text) - 1) + b"0"
    return text


def _inflated(body: memoryview) -> bytes:
    try:
        raw: bytes = isal_zlib.decompressobj().decompress(body, RULES.inflated_bytes_max)
    except igzip_lib.IsalError:
        return b""
    return raw


def seconds_of(work: Callable[[], object]) -> float:
    """Returns the CPU seconds of one call."""
    began = time.process_time()
    work()
    return time.process_time() - began


def cpu(value: bytes, rounds: int = ROUNDS) -> tuple[float, float, int]:
    """Returns (floor, cost, bytes of the recording) of a message; floor and cost are in CPU seconds."""
    message = Message(TopicPartition("t", 0), 1, 0, value, timestamp_ms=1_790_000_000_000)
    floor, raw_bytes = floor_of(value)
    floors, costs = [], []
    for _ in range(rounds):
        floors.append(seconds_of(floor))
        costs.append(seconds_of(lambda: parse(message, RULES)))
    return min(floors), min(costs), raw_bytes


def memory(value: bytes) -> int:
    """Returns the increase of this process's peak resident memory during a parse.

    The function may be called only once, before any other measurement.
    """
    message = Message(TopicPartition("t", 0), 1, 0, value, timestamp_ms=1_790_000_000_000)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    parse(message, RULES)
    return _status("VmHWM") - before


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def measure(value: bytes, rounds: int = ROUNDS) -> Cost:
    """Measures the cost of the message in this process."""
    taken = memory(value)
    floor_seconds, cost_seconds, raw_bytes = cpu(value, rounds)
    return Cost(len(value), raw_bytes, floor_seconds, cost_seconds, taken)


def measure_separately(value: bytes) -> Cost:
    """Measures the cost of the message in a separate process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "message"
        path.write_bytes(value)
        command = [sys.executable, "-m", "tests.cost.measure", str(path)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=MEASURE_SECONDS_MAX, check=True)
    return Cost(**json.loads(result.stdout))


if __name__ == "__main__":
    print(json.dumps(asdict(measure(Path(sys.argv[1]).read_bytes()))))
