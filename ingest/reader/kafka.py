"""The Kafka consumer: polls, pauses, commits, and converts group changes to events.

Offsets are committed explicitly, one past the last settled message, with the cut record as metadata; the client
never stores or commits offsets itself. Start offsets are always explicit (`ingest.reader.assignment`), so that an
offset out of range is reported instead of silently reset.

Client errors never end the loop: they become events, are retried, or lead to rejoining the group. Only errors that
require an operator are raised, as `ConsumerFailed`.
"""

from __future__ import annotations

import logging
import queue
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog
from confluent_kafka import (
    OFFSET_INVALID,
    Consumer,
    KafkaError,
    KafkaException,
)
from confluent_kafka import Message as KafkaMessage
from confluent_kafka import TopicPartition as KafkaPartition

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.cut_record import decode
from ingest.core.model import Message, TopicPartition
from ingest.core.stalls import Stalls
from ingest.core.starting import TopicView
from ingest.reader import leaving
from ingest.reader.assignment import (
    CALL_SECONDS_MAX,
    ConsumerFailed,
    NoStartOffset,
    Offsets,
    PartitionStart,
    Reset,
)
from tasks.kafka.records import UNREADABLE, Headers, as_bytes, headers_of
from tasks.units import MiB

POLL_MESSAGES_MAX = 200
POLL_BYTES_MAX = 8 * MiB
COMMITS_REMEMBERED_MAX = 16
LIBRDKAFKA_LOG_INTERVAL_SECONDS = 10.0
UNREADABLE_LOG_SECONDS = 60.0
REJOIN_SECONDS = 1.0
RENEW_SECONDS = 1.0
REPEAT_SECONDS = 1.0
STALLED_SECONDS_MAX = 30.0
STALL_CHECK_SECONDS = 5.0
LIBRDKAFKA_LOG_PATTERNS_MAX = 1000
_NUMBER = re.compile(r"\d+")

log = structlog.get_logger(__name__)


class KafkaSource:
    """One consumer of one topic. All methods are called by the loop's thread.

    Commit results arrive through `inbox`; group changes arrive through the callbacks of `subscribe`, inside
    `poll`.
    """

    def __init__(
        self,
        config: Mapping[str, str | int | float | bool],
        topic: str,
        inbox: queue.SimpleQueue[on.Event],
        offset_reset: Reset = "earliest",
        describe: Callable[[], TopicView] = TopicView,
        stalled_seconds_max: float = STALLED_SECONDS_MAX,
    ) -> None:
        """`describe` queries the topic, and returns an empty view if brokers do not respond.

        `stalled_seconds_max`: how long a partition that has not reached its log end may stall.
        """
        self.topic = topic
        self.rebalances = 0
        self.renewals = 0
        self.member_id = ""
        self.topic_id = ""
        self._unreadable_logged_at = -UNREADABLE_LOG_SECONDS
        self._member_known_at = 0
        self._reset = offset_reset
        self._describe = describe
        self._record_refused_logged = False
        self._unresolved: dict[int, tuple[int, float]] = {}
        self._starting = False
        self._renew_at: float | None = None
        self._instance_wait_logged = False
        self._rejoin_at = 0.0
        self._inbox = inbox
        self._epoch = 0
        self._epochs: dict[int, int] = {}
        self._positions: dict[int, int] = {}
        self._ends_asked: dict[int, int] = {}
        self._ends_reached: dict[int, int] = {}
        self._paused: set[int] = set()
        self._stall_check_seconds = min(STALL_CHECK_SECONDS, stalled_seconds_max / 4)
        self._stalls = Stalls(stalled_seconds_max, 2 * self._stall_check_seconds)
        self._stalls_at = 0.0
        self._sent: dict[int, deque[do.Commit]] = {}
        self._put_off: KafkaMessage | None = None
        self._rebalancing = False
        self._leaving = False
        self._must_rejoin = threading.Event()
        self._emit: Callable[[on.Event], None] = inbox.put
        self._drain: Callable[[tuple[TopicPartition, ...]], None] = lambda sources: None
        self._config = {
            "socket.timeout.ms": int(CALL_SECONDS_MAX * 1000),
            **config,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
            "on_commit": self._on_commit,
        }
        self._consumer = Consumer(self._config, logger=_LibraryLog())
        self._offsets = Offsets(topic, offset_reset)

    def subscribe(
        self, emit: Callable[[on.Event], None], drain: Callable[[tuple[TopicPartition, ...]], None]
    ) -> None:
        """Joins the group. `drain` returns once the partitions are released, which must happen within the session
        timeout."""
        self._emit, self._drain = emit, drain
        self._join()

    def _join(self) -> None:
        try:
            self._consumer.subscribe(
                [self.topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
            )
        except (KafkaException, RuntimeError) as failure:
            log.warning("kafka_call_failed", call="subscribe", error=str(failure))
            self._must_rejoin.set()

    def rejoin(self) -> None:
        """Makes the next poll drain and release all partitions, and rejoin the group. Thread-safe."""
        self._must_rejoin.set()

    # Called by the runtime

    def poll(self, timeout_seconds: float) -> Sequence[Message]:
        """Returns up to POLL_MESSAGES_MAX messages, with a total size of up to about POLL_BYTES_MAX bytes."""
        if not self._is_member(timeout_seconds):
            return ()
        self._resume_lost_offsets()
        self._restart_stalled()
        messages: list[Message] = []
        size_bytes = 0
        while len(messages) < POLL_MESSAGES_MAX and size_bytes < POLL_BYTES_MAX:
            polled, self._put_off = self._put_off, None
            if polled is None:
                polled = self._poll_once(0 if messages else timeout_seconds)
            if polled is None:
                break
            error = polled.error()
            if error is not None and error.code() == KafkaError._PARTITION_EOF:
                self._on_end(polled)
                continue
            if error is not None:
                if messages:  # messages must be taken before an offset is reported as out of range
                    self._put_off = polled
                else:
                    self._on_error(error, polled)
                break
            message = self._message(polled)
            if message is not None:
                size_bytes += message.size_bytes
                messages.append(message)
                self._positions[message.source.partition] = message.offset + 1
        return messages

    def _poll_once(self, timeout_seconds: float) -> KafkaMessage | None:
        """Polls the client once. After an error, including one raised by a rebalance callback, the reader
        rejoins."""
        try:
            return self._consumer.poll(timeout_seconds)
        except (KafkaException, RuntimeError) as failure:
            log.warning("kafka_call_failed", call="poll", error=str(failure))
            self._must_rejoin.set()
            time.sleep(timeout_seconds)
            return None

    def _is_member(self, timeout_seconds: float) -> bool:
        """Rejoins the group if requested. Returns False while its instance id belongs to another member."""
        now = time.monotonic()
        if self._renew_at is not None:
            if now < self._renew_at:
                time.sleep(min(timeout_seconds, self._renew_at - now))
                return False
            self._renew()
        elif self._must_rejoin.is_set() and now >= self._rejoin_at:
            self._must_rejoin.clear()
            self._rejoin_at = now + REJOIN_SECONDS
            self._guarded("unsubscribe", self._consumer.unsubscribe)
            self._join()
        if self.rebalances != self._member_known_at:
            # Called only on this thread: the client does not serve this request while it polls, so on another
            # thread the call would block.
            self._member_known_at = self.rebalances
            self.member_id = self._guarded("memberid", self._consumer.memberid) or ""
        return True

    def _renew(self) -> None:
        """Replaces the client after a fatal error."""
        self._renew_at = None
        self.renewals += 1
        self._guarded("close", leaving.close, self._consumer, leaving.REPLACE_SECONDS_MAX)
        self._consumer = Consumer(self._config, logger=_LibraryLog())
        self._join()

    def _guarded(self, call: str, method: Callable[..., Any], *arguments: Any) -> Any:
        """Calls a method of the client. Logs a failure and returns None."""
        try:
            return method(*arguments)
        except (KafkaException, RuntimeError) as failure:
            log.warning("kafka_call_failed", call=call, error=str(failure))
            return None

    def commit(self, command: do.Commit) -> None:
        """Commits asynchronously, except inside a rebalance callback, where the response would not be served.

        Runs on the loop's thread because the client blocks other threads while it polls.
        """
        source = command.source
        stored = KafkaPartition(self.topic, source.partition, command.offset, command.record)
        self._sent.setdefault(source.partition, deque(maxlen=COMMITS_REMEMBERED_MAX)).append(command)
        log.debug("commit_sent", partition=source.partition, offset=command.offset, record=command.record)
        try:
            if self._rebalancing:
                self._on_commit(None, self._consumer.commit(offsets=[stored], asynchronous=False) or [])
            else:
                self._consumer.commit(offsets=[stored], asynchronous=True)
        except (KafkaException, RuntimeError) as failure:
            # Commit the start offsets of the other new partitions asynchronously. Synchronous commits would each
            # wait for a timeout.
            self._rebalancing = self._rebalancing and not self._starting
            self._on_commit(failure.args[0], [stored])

    def _on_commit(self, error: KafkaError | str | None, partitions: list[KafkaPartition]) -> None:
        for stored in partitions:
            command = self._take_sent_commit(stored)
            if command is None:
                continue
            sent = (command.source, command.epoch, command.offset, command.record)
            refusal = stored.error or error
            log.debug(
                "commit_answered",
                partition=command.source.partition,
                offset=command.offset,
                record=command.record,
                error=str(refusal or ""),
            )
            if refusal is None:
                self._inbox.put(on.Committed(*sent))
            elif _has_code(refusal, KafkaError.OFFSET_METADATA_TOO_LARGE) and command.record:
                self._log_refused_record(command)
                self._inbox.put(on.CommitFailed(*sent, str(refusal), record_too_long=True))
            else:
                log.warning("commit_failed", source=str(command.source), offset=command.offset, error=str(refusal))
                self._inbox.put(on.CommitFailed(*sent, str(refusal)))

    def _log_refused_record(self, command: do.Commit) -> None:
        """Logs a refused record once. The reader then sends shorter records, on every partition, until one is
        stored."""
        if not self._record_refused_logged:
            self._record_refused_logged = True
            log.error(
                "commit_metadata_refused",
                source=str(command.source),
                bytes=len(command.record),
                what_to_do="set REPLAYS_CUT_RECORD_BYTES_MAX below the brokers' offset.metadata.max.bytes",
            )

    def _take_sent_commit(self, stored: KafkaPartition) -> do.Commit | None:
        """Removes and returns the oldest commit that matches this response, even if the core has timed it out."""
        waiting = self._sent.get(stored.partition, deque())
        for command in waiting:
            if command.offset == stored.offset and stored.metadata in (None, "", command.record):
                waiting.remove(command)
                return command
        return None

    def pause(self, sources: tuple[TopicPartition, ...]) -> None:
        """Stops fetching from those of the given partitions that are still assigned."""
        self._paused.update(source.partition for source in sources if source.partition in self._epochs)
        self._guarded("pause", self._consumer.pause, self._assigned(sources))

    def resume(self, sources: tuple[TopicPartition, ...]) -> None:
        """Resumes fetching from those of the given partitions that are still assigned."""
        self._paused.difference_update(source.partition for source in sources)
        self._guarded("resume", self._consumer.resume, self._assigned(sources))

    def close(self) -> None:
        """Leaves the group. Callbacks of a pending rebalance run inside this call."""
        self._leaving = True
        self._guarded("close", leaving.close, self._consumer)

    def log_ranges(self) -> dict[TopicPartition, tuple[int, int]]:
        """Returns the (low, high) watermarks of each assigned partition, as of the last fetch. Makes no
        request."""
        return self._log_ranges(cached=True)

    def query_log_ranges(self) -> dict[TopicPartition, tuple[int, int]]:
        """Requests the watermarks from the broker, because cached values do not change while fetching is paused.

        Any thread may call this method. Partitions without a response are left out.
        """
        return self._log_ranges(cached=False)

    def _log_ranges(self, *, cached: bool) -> dict[TopicPartition, tuple[int, int]]:
        ranges = {}
        for partition in tuple(self._epochs):
            try:
                low, high = self._consumer.get_watermark_offsets(
                    KafkaPartition(self.topic, partition), timeout=CALL_SECONDS_MAX, cached=cached
                )
            except (KafkaException, RuntimeError):
                continue
            if high >= 0 and not cached:
                self._ends_asked[partition] = high
            if high >= 0:
                ranges[TopicPartition(self.topic, partition)] = (max(low, 0), high)
        return ranges

    def _message(self, polled: KafkaMessage) -> Message | None:
        partition, offset = polled.partition(), polled.offset()
        if partition is None or offset is None or partition not in self._epochs:
            return None
        timestamp, value = polled.timestamp(), as_bytes(polled.value())
        return Message(
            source=TopicPartition(self.topic, partition),
            epoch=self._epochs[partition],
            offset=offset,
            value=value or b"",
            key=as_bytes(polled.key()),
            headers=self._headers(polled),
            timestamp_ms=timestamp[1] if timestamp[0] else 0,
            tombstone=value is None,
        )

    def _headers(self, polled: KafkaMessage) -> Headers:
        headers = headers_of(polled)
        now = time.monotonic()
        if headers is UNREADABLE and now - self._unreadable_logged_at >= UNREADABLE_LOG_SECONDS:
            self._unreadable_logged_at = now
            log.warning("headers_unreadable", partition=polled.partition(), offset=polled.offset())
        return headers

    # Group callbacks

    def _on_assign(self, consumer: Consumer, partitions: list[KafkaPartition]) -> None:
        self.rebalances += 1
        if self._leaving:  # offset requests would fail, and no messages would be read
            return
        numbers = [partition.partition for partition in partitions]
        topic, asked_at = self._describe(), time.monotonic()
        try:
            found = self._offsets.find(consumer, numbers, topic, self.topic_id)
        except NoStartOffset as failure:
            self._assign_nothing(numbers, str(failure))
            return
        self._instance_wait_logged = False
        read = {
            position.partition: (position.committed, position.text)
            for position in found
            if not position.start.replaced
        }
        log.debug("offsets_read", partitions=read, seconds=round(time.monotonic() - asked_at, 3))
        # If the brokers returned no topic id, use the id in a cut record. `GroupWatch` later compares that id with
        # the current id of the topic.
        recorded = next((decode(0, position.text).topic_id for position in found if position.text), "")
        now_read = topic.id or recorded or self.topic_id
        if self.topic_id and now_read != self.topic_id and self._epochs:
            self._must_rejoin.set()  # because `GroupWatch` cannot detect that other partitions use the old topic
        self.topic_id = now_read
        self._log_replaced(found)
        given, starts = [], []
        for position in found:
            self._epoch += 1
            self._epochs[position.partition] = self._epoch
            self._positions[position.partition] = position.offset
            given.append(
                on.Assignment(
                    TopicPartition(self.topic, position.partition),
                    self._epoch,
                    position.committed,
                    position.text,
                    None if position.committed is not None else position.offset,
                    topic.id,
                    position.start.partitions_at_start,
                    position.start.replaced,
                )
            )
            starts.append(KafkaPartition(self.topic, position.partition, position.offset))
        if not self._assign(starts):
            self._must_rejoin.set()
            return
        log.info("partitions_assigned", partitions={a.source.partition: a.committed for a in given})
        # Commit the start offset before reading, so that it stays the same after a crash.
        self._starting = self._rebalancing = any(assignment.committed is None for assignment in given)
        try:
            self._emit(on.PartitionsAssigned(tuple(given)))
        finally:
            self._starting = self._rebalancing = False

    def _assign(self, starts: list[KafkaPartition]) -> bool:
        """Assigns the partitions and resumes them, because a paused partition stays paused in the client
        even after it is unassigned and assigned again. The core then decides whether to pause.

        Returns False if the client refused the assignment.
        """
        try:
            self._consumer.incremental_assign(starts)
            self._consumer.resume(starts)
        except (KafkaException, RuntimeError) as failure:
            log.warning("kafka_call_failed", call="assign", error=str(failure))
            self._forget(self._named(starts))
            return False
        return True

    def _assign_nothing(self, numbers: list[int], reason: str) -> None:
        """Assigns partitions without an epoch, because the client requires an assignment. Messages of these
        partitions are not delivered, and the reader rejoins."""
        log.warning("assignment_given_up", partitions=numbers, reason=reason)
        idle = [KafkaPartition(self.topic, number, 0) for number in numbers]
        self._guarded("assign", self._consumer.incremental_assign, idle)
        self._guarded("pause", self._consumer.pause, idle)
        self._must_rejoin.set()

    def _log_replaced(self, found: list[PartitionStart]) -> None:
        replaced = {position.partition: position.offset for position in found if position.start.replaced}
        if replaced:
            former = next(position.start.replaced for position in found if position.start.replaced)
            log.error("topic_recreated", topic=self.topic, former=former, now=self.topic_id, starts=replaced)

    def _on_revoke(self, consumer: Consumer, partitions: list[KafkaPartition]) -> None:
        self.rebalances += 1
        sources = self._named(partitions)
        log.info("partitions_revoked", partitions=[source.partition for source in sources])
        self._rebalancing = True
        try:
            self._resend_commit(sources)
            self._drain(sources)
        finally:
            self._rebalancing = False
        self._forget(sources)

    def _resend_commit(self, sources: tuple[TopicPartition, ...]) -> None:
        """Resends the newest commit synchronously, because responses are served only in `poll`, which waits for
        this drain."""
        for source in sources:
            waiting = self._sent.get(source.partition)
            if waiting:
                command = waiting[-1]
                waiting.clear()
                self.commit(command)

    def _on_lost(self, consumer: Consumer, partitions: list[KafkaPartition]) -> None:
        self.rebalances += 1
        sources = self._named(partitions)
        log.warning("partitions_lost", partitions=[source.partition for source in sources])
        self._forget(sources)
        self._emit(on.PartitionsLost(sources))

    def _forget(self, sources: tuple[TopicPartition, ...]) -> None:
        for source in sources:
            self._epochs.pop(source.partition, None)
            self._unresolved.pop(source.partition, None)
            self._positions.pop(source.partition, None)
            self._ends_asked.pop(source.partition, None)
            self._ends_reached.pop(source.partition, None)
            self._paused.discard(source.partition)

    def _named(self, partitions: list[KafkaPartition]) -> tuple[TopicPartition, ...]:
        return tuple(TopicPartition(self.topic, p.partition) for p in partitions)

    def _assigned(self, sources: tuple[TopicPartition, ...]) -> list[KafkaPartition]:
        return [KafkaPartition(self.topic, s.partition) for s in sources if s.partition in self._epochs]

    def _on_end(self, polled: KafkaMessage) -> None:
        """Handles the end of a partition. The client reports the end each time it is reached. The reported offset
        counts transaction markers."""
        partition, end = polled.partition(), polled.offset()
        if partition is None or end is None or partition not in self._positions:
            return
        source, position = TopicPartition(self.topic, partition), self._positions[partition]
        self._ends_reached[partition] = end
        self._emit(on.EndReached(source, self._epochs[partition], position, max(position, end)))

    # Errors

    def _on_error(self, error: KafkaError, polled: KafkaMessage) -> None:
        if error.code() == KafkaError._AUTO_OFFSET_RESET:
            partition, wanted = polled.partition(), polled.offset()
            if partition is not None and partition in self._epochs:
                self._resume_at_limit(partition, -1 if wanted is None or wanted == OFFSET_INVALID else wanted)
        elif error.code() == KafkaError._FATAL or error.fatal():
            self._on_fatal(error)
        elif error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.TOPIC_AUTHORIZATION_FAILED):
            log.error("topic_unavailable", topic=self.topic, error=error.str())
        else:
            log.warning("kafka_error", code=error.name(), error=error.str())

    def _on_fatal(self, error: KafkaError) -> None:
        """Raises ConsumerFailed, except for the only fatal error that is temporary: the instance id is in use,
        because a killed static member keeps it until the member's session ends (KIP-848). The client reports this
        error only as text.
        """
        if KafkaError(KafkaError.UNRELEASED_INSTANCE_ID).str() not in error.str():
            raise ConsumerFailed(f"the Kafka client failed permanently: {error.str()}")
        if not self._instance_wait_logged:
            self._instance_wait_logged = True
            log.warning(
                "instance_id_in_use",
                instance=self._config.get("group.instance.id"),
                what_happens="tried again until the session of its former member ends",
            )
        self._renew_at = time.monotonic() + RENEW_SECONDS

    def _resume_lost_offsets(self) -> None:
        """Retries partitions whose offset was out of range while the start and end offsets of their log were
        unavailable."""
        now = time.monotonic()
        for partition, (wanted, at) in list(self._unresolved.items()):
            if now >= at:
                self._resume_at_limit(partition, wanted)

    def _restart_stalled(self) -> None:
        """Restarts fetching of partitions that have stalled (`ingest.core.stalls`)."""
        now = time.monotonic()
        if now < self._stalls_at:
            return
        self._stalls_at = now + self._stall_check_seconds
        ends = {source.partition: high for source, (_, high) in self.log_ranges().items()}
        fetched = {
            partition: (
                max(position, self._ends_reached.get(partition, 0)),
                max(ends.get(partition, 0), self._ends_asked.get(partition, 0)),
            )
            for partition, position in self._positions.items()
            if partition not in self._paused and partition not in self._unresolved
        }
        for partition in self._stalls.check(fetched, now):
            position, end = self._positions[partition], fetched[partition][1]
            log.error("fetch_stalled", partition=partition, position=position, end=end)
            self._guarded("unassign", self._consumer.incremental_unassign, [KafkaPartition(self.topic, partition)])
            if not self._assign([KafkaPartition(self.topic, partition, position)]):
                self._must_rejoin.set()
                self._emit(on.PartitionsLost((TopicPartition(self.topic, partition),)))

    def _resume_at_limit(self, partition: int, wanted: int) -> None:
        """Handles an offset that is not in the log: messages expired before they were read, or the topic was
        recreated."""
        source = TopicPartition(self.topic, partition)
        self._unresolved.pop(partition, None)
        if self._must_rejoin.is_set():
            return  # after rejoining, the start offset is determined again, possibly for a new topic
        topic_id = self._describe().id
        if self.topic_id and topic_id and topic_id != self.topic_id:
            self._must_rejoin.set()  # drain all partitions, rejoin, and start at the beginning
            return
        try:
            low, high = self._offsets.log_range(self._consumer, partition)
        except NoStartOffset as failure:
            log.warning("log_range_unavailable", source=str(source), error=str(failure))
            self._unresolved[partition] = (wanted, time.monotonic() + REPEAT_SECONDS)
            return
        log.error("offset_out_of_range", source=str(source), wanted=wanted, low=low, high=high, policy=self._reset)
        if self._reset == "error":
            raise ConsumerFailed(
                f"offset {wanted} of {source} is not in the log [{low}, {high}]: messages may be lost. "
                "Decide: set REPLAYS_KAFKA_OFFSET_RESET to earliest (the oldest message) or latest, then restart"
            )
        resumed_at = low if self._reset == "earliest" else high
        self._epoch += 1
        self._epochs[partition] = self._epoch
        self._positions[partition] = resumed_at
        self._guarded("unassign", self._consumer.incremental_unassign, [KafkaPartition(self.topic, partition)])
        if not self._assign([KafkaPartition(self.topic, partition, resumed_at)]):
            self._must_rejoin.set()
            self._emit(on.PartitionsLost((source,)))
            return
        self._emit(on.OffsetOutOfRange(source, self._epoch, wanted, resumed_at))


def _has_code(error: object, code: int) -> bool:
    return isinstance(error, KafkaError) and error.code() == code


class _LibraryLog:
    """Forwards librdkafka's log lines (level, "facility message") to the reader's log.

    Lines that differ only in numbers are logged once per LIBRDKAFKA_LOG_INTERVAL_SECONDS, with the number of
    suppressed lines, because librdkafka logs an unreachable broker twenty times per second.
    """

    def __init__(self) -> None:
        self._last_logged: dict[str, tuple[float, int]] = {}

    def log(self, level: int, text: str, *arguments: Any) -> None:
        line = text % arguments if arguments else text
        pattern, now = _NUMBER.sub("0", line), time.monotonic()
        logged_at, left_out = self._last_logged.get(pattern, (-LIBRDKAFKA_LOG_INTERVAL_SECONDS, 0))
        if now - logged_at < LIBRDKAFKA_LOG_INTERVAL_SECONDS:
            self._last_logged[pattern] = (logged_at, left_out + 1)
            return
        if len(self._last_logged) >= LIBRDKAFKA_LOG_PATTERNS_MAX:
            self._last_logged.clear()
        self._last_logged[pattern] = (now, 0)
        log.log(max(logging.INFO, min(level, logging.WARNING)), "librdkafka", line=line, left_out=left_out)
