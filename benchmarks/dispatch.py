"""Measures the cost of dispatching a batch to Redis and Celery, by batch size. Flush tasks are not run.

    python -m benchmarks.dispatch [--sizes 1,10,50,100,200,500] [--batches 60] [--json FILE]

The reader's code stages parsed segments and starts their chords on a real Redis, with no worker. Prints the CPU
time of the publishing process and of Redis per batch and per segment, chords per second, and the size of the
longest queue entry.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import psutil

from benchmarks.common import machine, show, write_json
from benchmarks.workload import STARTED_AT, workload
from ingest.core.model import Batch, CutReason, Message, OffsetRange, Segment, Stage, TopicPartition
from ingest.core.parse import ParseRules, parse
from ingest.local.stack import Stack
from ingest.reader.encoding import Encoder
from ingest.settings import Settings
from tasks import chord
from tasks.connection import connect
from tasks.staging import Staging
from tasks.wire import ChordName, SinkName, reference

SOURCE = TopicPartition("benchmark", 0)


def segments_of(count: int) -> list[Segment]:
    """Returns parsed messages of the load generator's `clean` mix."""
    found = []
    for offset, value in enumerate(workload(count).values):
        parsed = parse(Message(SOURCE, 1, offset, value, timestamp_ms=STARTED_AT * 1000), ParseRules())
        if isinstance(parsed, Segment):
            found.append(parsed)
    return found


def batch_of(segments: Sequence[Segment], number: int, size: int) -> Batch:
    """Returns the batch with this number and this many segments. The segments repeat if necessary."""
    start = number * size
    chosen = tuple(segments[(start + place) % len(segments)] for place in range(size))
    return Batch(
        source=SOURCE,
        epoch=1,
        offsets=OffsetRange(start, start + size),
        segments=chosen,
        rejects=(),
        size_bytes=sum(segment.size_bytes for segment in chosen),
        cut_by=CutReason.COUNT,
    )


def measure(
    settings: Settings, redis_pid: int, segments: Sequence[Segment], size: int, batches: int
) -> dict[str, Any]:
    """Encodes, stages, starts and discards `batches` batches of `size` segments. Starts one chord for each of the
    two stages of a batch. Returns the CPU time, in microseconds, and the rates.
    """
    app = chord.publisher(settings)
    staging = Staging(connect(settings), settings)
    encoder = Encoder(settings.sinks, settings.blobs_per_task, "benchmark")
    redis = psutil.Process(redis_pid)
    staging.client.flushdb()
    spent = {"encode": 0.0, "stage": 0.0, "publish": 0.0, "discard": 0.0}
    wall, longest, messages = 0.0, 0, 0
    before = redis.cpu_times()
    for number in range(-2, batches):
        if number == 0:
            spent, wall, messages = dict.fromkeys(spent, 0.0), 0.0, 0
            before = redis.cpu_times()
        batch = batch_of(segments, max(number, 0), size)
        began, at = time.monotonic(), time.process_time()
        encoded = encoder.encode(batch)
        manifest = encoded.manifest
        name = reference(manifest)
        at = _add(spent, "encode", at)
        for stage in Stage:
            tasks = [entry.name for entry in manifest.of_stage(stage)]
            if not tasks:
                continue
            tasks = staging.unmarked(manifest, tasks)
            chord_name = ChordName(name, stage, 1, chord.new_token())
            staging.stage(manifest, chord_name, {task: encoded.payloads.pop(task) for task in tasks})
            at = _add(spent, "stage", at)
            chord.start(app, chord.FanOut(chord_name, tuple(tasks), int(time.time()) + 60))
            at = _add(spent, "publish", at)
            messages += len(tasks)
        staging.discard(manifest)
        at = _add(spent, "discard", at)
        wall += time.monotonic() - began
        if number in (-1, batches - 1):
            longest = max(longest, _longest(staging.client))
            staging.client.flushdb()
    after = redis.cpu_times()
    redis_seconds = after.user + after.system - before.user - before.system
    per_segment = 1e6 / (batches * size)
    return {
        "size": size,
        "batches": batches,
        "chords_per_second": 2 * batches / wall,
        "segments_per_second": batches * size / wall,
        "tasks_per_batch": messages / batches,
        "message_bytes_max": longest,
        "batch_micros": sum(spent.values()) / batches * 1e6,
        "segment_micros": sum(spent.values()) * per_segment,
        "redis_micros_per_segment": redis_seconds * per_segment,
        "micros_per_segment": {name: seconds * per_segment for name, seconds in spent.items()},
    }


def _add(spent: dict[str, float], step: str, since: float) -> float:
    now = time.process_time()
    spent[step] += now - since
    return now


def _longest(client: Any) -> int:
    """Returns the size, in bytes, of the largest message in the workers' queues, which are Redis lists."""
    sizes = [
        len(entry)
        for key in client.scan_iter(count=1000)
        if client.type(key) == b"list"
        for entry in client.lrange(key, 0, -1)
    ]
    return max(sizes, default=0)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", default="1,10,50,100,200,500", help="segments per batch, comma-separated")
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--segments", type=int, default=600, help="distinct segments")
    parser.add_argument("--json", help="write the figures to this file")
    arguments = parser.parse_args()
    segments = segments_of(arguments.segments)
    results = []
    with Stack() as stack:
        stack.start(("redis",))
        settings = Settings(redis_url=stack.addresses["redis"], sinks=tuple(SinkName))  # type: ignore[arg-type]
        for size in map(int, arguments.sizes.split(",")):
            pid = stack.servers["redis"].child.pid
            results.append(measure(settings, pid, segments, size, arguments.batches))
    columns = ("batch size", "chords/s", "tasks per batch", "message bytes", "CPU µs/batch", "CPU µs/seg")
    rows = [
        [
            str(result["size"]),
            f"{result['chords_per_second']:.0f}",
            f"{result['tasks_per_batch']:.0f}",
            str(result["message_bytes_max"]),
            f"{result['batch_micros']:.0f}",
            f"{result['segment_micros']:.1f}",
            *(f"{value:.1f}" for value in result["micros_per_segment"].values()),
            f"{result['redis_micros_per_segment']:.1f}",
        ]
        for result in results
    ]
    show("dispatch of batches", (*columns, "encode", "stage", "publish", "discard", "redis"), rows)
    write_json(arguments.json, {"machine": machine(), "results": results})


if __name__ == "__main__":
    main()
