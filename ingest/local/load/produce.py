"""The load generator: generates realistic messages from a seed, produces them to Kafka, and writes a manifest.

    produced = produce(settings, PROFILES["demo"], count=5000, seed=1, manifest_path=path)

A `Profile` defines the mix. `stream` generates the messages of many concurrent sessions, with some segments out of
order, some sent twice and some malformed. Equal profiles, counts, seeds and starts produce the same bytes in the
same order, unless `received` is the time at which they are produced. The partition of each message is random, and
the manifest records it.

Memory is bounded for any count. The pages of a site are generated once and shared by all sessions, so full
snapshots and re-renders recur across sessions, as they do for real visitors to a site. At most `sessions_at_once`
sessions are open at a time, and only a few messages are held back to be sent late or twice.
"""

from __future__ import annotations

import heapq
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka import Message as KafkaMessage

from ingest.local.load.malformed import malformed, zip_bomb
from ingest.local.load.manifest import Entry, Header, Writer
from ingest.local.load.mix import Mix
from ingest.local.load.pages import make_site
from ingest.local.load.relay import Message
from ingest.local.load.sessions import Session
from tasks.kafka.faults import ClientErrors, list_topics
from tasks.kafka.options import kafka_options
from tasks.kafka.topics import DOWN_SECONDS_MAX, RESPONSE_SECONDS_MAX
from tasks.settings import Settings
from tasks.units import MiB

PROGRESS_SECONDS = 0.2
QUEUED_BYTES_MAX = 64 * MiB
DELIVERY_SECONDS_MAX = 60.0

Clock = Callable[[], float]
"""Unix seconds."""
Progress = Callable[[int, int, int], None]
"""(messages acknowledged so far, messages expected, bytes acknowledged)"""


class LoadError(RuntimeError):
    """Raised if the broker did not accept the load. The message quotes the broker's response."""


@dataclass(frozen=True, slots=True)
class Profile:
    """A mix of messages.

    Shares are per segment. Duplicates and malformed messages are produced in addition to the requested segments.

    Sessions start within `spread_seconds` before the start time passed to `stream`.
    """

    name: str
    mix: Mix = field(default_factory=Mix)
    pages: int = 24
    cards: tuple[int, int] = (24, 150)
    style_rules: tuple[int, ...] = (260, 420, 620)
    duplicates: float = 0.02
    late: float = 0.04
    malformed: float = 0.02
    zip_bombs: int = 0
    sessions_at_once: int = 60
    spread_seconds: int = 6 * 3600


PROFILES = {
    # This profile is like production: a mean of about 166 kB of JSON per segment, 20 kB compressed.
    "demo": Profile("demo"),
    # This profile is for tests: the same events on small pages, about 4 kB compressed, with rare events made
    # frequent.
    "small": Profile(
        "small",
        mix=Mix(
            segments_mean=4.0,
            panels_heavy=(1, 2),
            dead_click=0.12,
            rage_click=0.08,
            slow_click=0.08,
            click_flood=0.02,
            negative_click=0.03,
            hydration_error=0.05,
            mutation_report=0.08,
            feedback=0.03,
            odd_event=0.06,
            raw_body=0.06,
            broken_body=0.02,
            trailing_bytes=0.02,
            replay_event_missing=0.03,
            replay_event_broken=0.04,
            video_bytes=(400, 900),
        ),
        pages=4,
        cards=(3, 6),
        style_rules=(8,),
        duplicates=0.05,
        late=0.1,
        malformed=0.04,
    ),
    # This profile is for benchmarks: it has no malformed messages and no duplicates.
    "clean": Profile(
        "clean",
        mix=Mix(broken_body=0, odd_event=0, trailing_bytes=0, replay_event_missing=0, replay_event_broken=0),
        duplicates=0,
        malformed=0,
    ),
}


def default_start() -> int:
    """Returns the last midnight UTC in Unix seconds, which is constant for a day and recent enough for every
    retention period.
    """
    return int(time.time()) // 86_400 * 86_400


def stream(
    profile: Profile, count: int, seed: int, started_at: int, clock: Clock | None = None
) -> Iterator[Message]:
    """Generates `count` distinct segments, with duplicates and malformed messages between them.

    No session begins after `started_at`, in Unix seconds. With a `clock`, each segment's `received` is the time at
    which the segment is generated, not the time at which it ends in the session; its duplicates still have the
    same bytes. Every segment then has a valid replay_event, because a row without the event's time gets the time
    in `received`, which would extend the replay to the present.
    """
    if clock is not None:
        profile = replace(profile, mix=replace(profile.mix, replay_event_missing=0.0, replay_event_broken=0.0))
    rng = random.Random(f"stream:{seed}")
    held: list[tuple[int, int, Message]] = []
    segments_made = malformed_made = tie = 0
    made = _segments(profile, count, seed, started_at)
    for segments_made, message in enumerate(made if clock is None else _arriving(made, clock), start=1):
        chance = rng.random()
        if chance < profile.late:
            tie += 1
            heapq.heappush(held, (segments_made + rng.randint(1, 40), tie, message))
        else:
            yield message
        if rng.random() < profile.duplicates:
            entry = msgspec.structs.replace(message.entry, duplicate=True)
            tie += 1
            heapq.heappush(held, (segments_made + rng.randint(0, 60), tie, Message(message.value, entry)))
        while held and held[0][0] <= segments_made:
            yield heapq.heappop(held)[2]
        while malformed_made < int(segments_made * profile.malformed):
            yield malformed(rng, malformed_made, started_at)
            malformed_made += 1
    for _ in range(profile.zip_bombs):
        yield zip_bomb(rng)
    while held:
        yield heapq.heappop(held)[2]


def _arriving(messages: Iterator[Message], clock: Clock) -> Iterator[Message]:
    for message in messages:
        envelope = msgspec.msgpack.decode(message.value)
        value = msgspec.msgpack.encode({**envelope, "received": int(clock())})
        message.entry.value_bytes = len(value)
        yield Message(value, message.entry)


def _segments(profile: Profile, count: int, seed: int, started_at: int) -> Iterator[Message]:
    """Generates the segments of many concurrent sessions, in order within each session."""
    rng = random.Random(f"sessions:{seed}")
    site = make_site(seed, profile.pages, profile.cards, profile.style_rules)
    begun = 0
    open_sessions: list[Iterator[Message]] = []
    for _ in range(count):
        while True:
            if len(open_sessions) < profile.sessions_at_once:
                begins_at = started_at - 300 - rng.randrange(profile.spread_seconds)
                session = Session(f"{seed}:{begun}", site, profile.mix, begins_at)
                open_sessions.append(session.messages())
                begun += 1
            place = rng.randrange(len(open_sessions))
            message = next(open_sessions[place], None)
            if message is not None:
                break
            open_sessions[place] = open_sessions[-1]
            open_sessions.pop()
        yield message


@dataclass(slots=True)
class ProducedTotals:
    """The totals of the produced messages. Byte counts refer to message values."""

    messages: int = 0
    segments: int = 0
    rejects: int = 0
    duplicates: int = 0
    size_bytes: int = 0
    seconds: float = 0.0
    ends: dict[int, int] = field(default_factory=dict)
    """Log end by partition, one after the highest acknowledged offset."""


def produce(
    settings: Settings,
    profile: Profile,
    count: int,
    seed: int = 1,
    *,
    manifest_path: Path,
    rate: float | None = None,
    started_at: int | None = None,
    clock: Clock | None = None,
    progress: Progress = lambda done, expected, size_bytes: None,
    stop: Callable[[], bool] = lambda: False,
) -> ProducedTotals:
    """Produces to `settings.kafka_topic` and returns when every message is acknowledged.

    `rate` is the maximum number of messages per second; None means unlimited. `clock`: see `stream`. `stop` is
    checked between messages.
    Raises LoadError if the broker refuses a message or does not respond.
    """
    start = default_start() if started_at is None else started_at
    header = Header(settings.kafka_topic, profile.name, seed, count, start, received_now=clock is not None)
    expected = count + int(count * (profile.malformed + profile.duplicates)) + profile.zip_bombs
    began = reported_at = time.monotonic()
    run = _Run(settings)  # before the manifest, so that no file is created if no broker responds
    with Writer(manifest_path, header) as manifest:
        run.record_in(manifest)
        for number, message in enumerate(stream(profile, count, seed, start, clock)):
            if stop():
                break
            if rate:
                run.wait_until(began + number / rate)
            run.send(message)
            if time.monotonic() - reported_at >= PROGRESS_SECONDS:
                reported_at = time.monotonic()
                progress(run.produced.messages, expected, run.produced.size_bytes)
        run.finish()
    run.produced.seconds = time.monotonic() - began
    progress(run.produced.messages, run.produced.messages, run.produced.size_bytes)
    return run.produced


class _Run:
    """The producer and its acknowledged messages."""

    def __init__(self, settings: Settings) -> None:
        self.produced = ProducedTotals()
        self._topic = settings.kafka_topic
        self._manifest: Writer | None = None
        self._error: KafkaError | None = None
        errors = ClientErrors()
        self._producer = Producer(
            {
                "compression.type": "lz4",
                "linger.ms": 5,
                # As in Relay, messages have no key, so the segments of a replay are spread over partitions.
                "partitioner": "random",
                "sticky.partitioning.linger.ms": 0,
                "message.max.bytes": 16 * MiB,
                "queue.buffering.max.kbytes": QUEUED_BYTES_MAX // 1024,
                "message.timeout.ms": int(DELIVERY_SECONDS_MAX * 1000),
                "enable.idempotence": True,
                **kafka_options(settings),
                "error_cb": errors.note,
            },
            logger=errors,  # the client library's own lines would flood the terminal
        )
        try:
            list_topics(self._producer, errors, RESPONSE_SECONDS_MAX, down_seconds_max=DOWN_SECONDS_MAX)
        except KafkaException as error:
            raise LoadError(errors.fault(settings.kafka_brokers, error.args[0]).line) from error

    def record_in(self, manifest: Writer) -> None:
        """Sets the manifest of acknowledged messages. Must be called before the first message."""
        self._manifest = manifest

    def send(self, message: Message) -> None:
        """Queues one message, waiting while the queue is full."""
        entry = message.entry

        def delivered(error: KafkaError | None, record: KafkaMessage) -> None:
            if error is not None:
                self._error = error
            else:
                self._acknowledge(entry, record)

        ends_at = time.monotonic() + DELIVERY_SECONDS_MAX
        while True:
            try:
                self._producer.produce(self._topic, value=message.value, on_delivery=delivered)
                break
            except BufferError:
                if time.monotonic() > ends_at:
                    raise LoadError("the broker accepts no messages: the queue was full for a minute") from None
                self._producer.poll(0.1)
        self._producer.poll(0)
        self._raise()

    def wait_until(self, at: float) -> None:
        """Processes acknowledgements until this time."""
        while (left := at - time.monotonic()) > 0:
            self._producer.poll(min(left, 0.1))

    def finish(self) -> None:
        """Waits for the last acknowledgement."""
        left = self._producer.flush(DELIVERY_SECONDS_MAX)
        self._raise()
        if left:
            raise LoadError(f"{left} messages were not acknowledged within {DELIVERY_SECONDS_MAX:g} s")

    def _acknowledge(self, entry: Entry, record: KafkaMessage) -> None:
        partition, offset = record.partition(), record.offset()
        assert partition is not None
        assert offset is not None
        assert self._manifest is not None
        entry.topic, entry.partition, entry.offset = self._topic, partition, offset
        self._manifest.write(entry)
        produced = self.produced
        produced.messages += 1
        produced.size_bytes += entry.value_bytes
        produced.rejects += entry.kind == "reject"
        produced.duplicates += entry.duplicate
        produced.segments += entry.kind != "reject" and not entry.duplicate
        produced.ends[partition] = max(produced.ends.get(partition, 0), offset + 1)

    def _raise(self) -> None:
        if self._error is not None:
            raise LoadError(f"the broker refused a message: {self._error.str()}")


def values(profile: Profile, count: int, seed: int = 1, started_at: int | None = None) -> Iterator[bytes]:
    """Generates only the values, for benchmarks without Kafka."""
    start = default_start() if started_at is None else started_at
    return (message.value for message in stream(profile, count, seed, start))


def summary(produced: ProducedTotals) -> dict[str, Any]:
    """Returns the totals as JSON values."""
    seconds = max(produced.seconds, 1e-9)
    return {
        "messages": produced.messages,
        "segments": produced.segments,
        "rejects": produced.rejects,
        "duplicates": produced.duplicates,
        "mb": round(produced.size_bytes / 1e6, 1),
        "seconds": round(produced.seconds, 2),
        "messages_per_second": round(produced.messages / seconds),
    }
