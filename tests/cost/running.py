"""Sends every shape in `tests.cost.committed` as one project to a running system, while another project sends at a
constant rate.

    python -m tests.cost.running [--raw-bytes N] [--segments N] [--rate N]

The system consists of the local stack with its emulators, workers and one reader, all in separate processes. The
memory limit in deploy/kubernetes/reader.yaml is set as RLIMIT_DATA of each reader process. RLIMIT_DATA needs no
cgroup, and a process that exceeds it gets a MemoryError. The program prints the other project's delay from sending
a segment to the commit of its batch, both without and with the hostile project. The outcome of each hostile
message is also printed. The exit code is 1 if a message is unaccounted for, a segment is lost, a reader exits, or
p99 more than doubles.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from ingest.local.launch import temporary_files_in_memory
from ingest.testing.messages import REPLAY_ID, click_event, console_event, recording
from tasks.units import GiB, MiB
from tests.cost.committed import ALL
from tests.kit.whole_system import System, until

MEMORY_BYTES_MAX = GiB
STEADY_PROJECT = 4200  # All hostile shapes belong to project 11.
STEADY_REPLAY_ID = "57ead0" + "0" * 26
# With these settings, a busy shared machine does not cause batches to be parked, and every segment is sampled,
# which is the most expensive case.
PATIENT_SETTINGS = {
    "sink_timeout_seconds": "20",
    "flush_deadline_seconds": "120",
    "task_visibility_seconds": "300",
    "sample_segment_rate": "1",
}
P99_RISE_MAX = 2.0

Position = tuple[int, int]
"""partition, offset"""


def replay_of(number: int) -> str:
    """Returns the replay id of a hostile message; each message has a different id, by which it can be
    identified.
    """
    return f"bad{number:029x}"


def hostile_messages(raw_bytes: int) -> Iterator[tuple[str, bytes]]:
    """Returns (name, Kafka value) of each committed shape."""
    for number, shape in enumerate(ALL):
        yield shape.name, shape.make(raw_bytes).replace(REPLAY_ID.encode(), replay_of(number).encode(), 1)


def steady_message(number: int) -> bytes:
    """Returns an ordinary segment of the other project."""
    events = [click_event(), *(console_event(f"line {line}") for line in range(20))]
    return recording(
        events, number, project_id=STEADY_PROJECT, replay_id=STEADY_REPLAY_ID, received=int(time.time())
    )


def limit_memory(system: System) -> None:
    """Applies the manifest's memory limit to the reader and every process that it starts from now on."""
    resource.prlimit(system.reader.pid, resource.RLIMIT_DATA, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))


def send_steadily(
    system: System, first: int, amount: int, rate: float, others: Sequence[bytes] = ()
) -> tuple[dict[Position, float], list[Position]]:
    """Sends `amount` segments at `rate` per second, with the other messages spread evenly between them.

    Returns the send time of each segment (Unix seconds) by its partition and offset, and the positions of the
    other messages.
    """
    began, sent, places = time.time(), dict[Position, float](), list[Position]()
    for number in range(amount):
        time.sleep(max(0.0, began + number / rate - time.time()))
        at = time.time()
        sent[system.send(steady_message(first + number))] = at
        while len(places) < len(others) * (number + 1) // amount:
            places.append(system.send(others[len(places)]))
    return sent, places


def delays(system: System, sent: dict[Position, float]) -> list[float]:
    """Returns the sorted delays, in seconds, from sending each segment to the commit of its batch, read from
    the reader's log.
    """
    found = dict[Position, float]()
    for line in system.reader.log_path.read_text().splitlines():
        if '"event": "batch"' not in line:
            continue
        batch = json.loads(line)
        if batch["outcome"] == "committed":
            at = datetime.fromisoformat(batch["timestamp"]).timestamp()
            for offset in range(batch["start"], batch["stop"]):
                found.setdefault((batch["partition"], offset), at)
    return sorted(found[place] - at for place, at in sent.items())


def p99(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[98]


def unaccounted(system: System, places: Sequence[Position]) -> list[int]:
    """Returns the indexes of hostile messages that became neither a segment in ClickHouse nor a dead letter."""
    rows = system.query("SELECT DISTINCT toString(replay_id) FROM replay_segments")
    stored = {str(replay).replace("-", "") for (replay,) in rows}
    letters = system.json("dlq", "ls", "--limit", str(10 * len(places)))["letters"]
    origins = {tuple(int(part) for part in letter["origin"].rsplit("-", 2)[1:]) for letter in letters}
    return [
        number for number, place in enumerate(places) if (replay_of(number) in stored) + (place in origins) != 1
    ]


def steady_rows(system: System) -> int:
    """Returns the number of distinct segments of the other project in ClickHouse."""
    return int(
        system.query(f"SELECT count() FROM replay_segments FINAL WHERE project_id = {STEADY_PROJECT}")[0][0]
    )


def main() -> int:
    """Runs two phases of equal length, without and with the hostile project."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--raw-bytes", type=int, default=10_000_000, help="Inflated size of each shape, in bytes.")
    parser.add_argument("--segments", type=int, default=1000, help="Segments of the steady project, per phase.")
    parser.add_argument("--rate", type=float, default=10.0, help="Segments of the steady project per second.")
    arguments = parser.parse_args()
    names, values = zip(*hostile_messages(arguments.raw_bytes), strict=True)
    with (
        temporary_files_in_memory(wanted=True),
        tempfile.TemporaryDirectory() as directory,
        System(Path(directory), **PATIENT_SETTINGS) as system,
    ):
        system.send_all([steady_message(0)])
        system.wait_until_committed()
        limit_memory(system)
        alone, _ = send_steadily(system, 1, arguments.segments, arguments.rate)
        others, places = send_steadily(system, 1 + arguments.segments, arguments.segments, arguments.rate, values)
        system.wait_until_committed(600)
        until(lambda: steady_rows(system) >= 1 + 2 * arguments.segments, 60, "the steady project's rows")
        lost = 1 + 2 * arguments.segments - steady_rows(system)
        missing = [names[number] for number in unaccounted(system, places)]
        before, after = delays(system, alone), delays(system, others)
        print(
            f"{len(values)} hostile messages, {sum(map(len, values)) / 1e6:.1f} MB, {arguments.raw_bytes} inflated"
        )
        print(f"delay alone:  p50 {statistics.median(before):.2f} s, p99 {p99(before):.2f} s")
        print(f"delay beside: p50 {statistics.median(after):.2f} s, p99 {p99(after):.2f} s")
        print(
            f"p99 rises {p99(after) / p99(before):.2f} times; readers started {system.reader.starts}; lost {lost}"
        )
        print(f"reader's peak {system.reader_peak_bytes() / MiB:.0f} MiB; unaccounted for: {missing or 'none'}")
        rose = p99(after) >= P99_RISE_MAX * p99(before)
        return 1 if missing or lost or rose or system.reader.starts != 1 else 0


if __name__ == "__main__":
    sys.exit(main())
