"""Readers with real pipelines, and the possible events of one reader, which come from the group, the workers and
the clock.

This module considers one reader, and the shared state of the partitions (`SharedState`). Functions yield possible
next events as `Outcome`s; some of them are faults, whose number per run is limited.

A reader has its own clock, which advances in ticks. No order between the clocks of two readers is assumed. Without
a fault, a response arrives before the next tick.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.flight import Phase
from ingest.core.limits import Limits
from ingest.core.model import Batch, CutReason, Stage, TopicPartition
from ingest.core.model import Outcome as Parsed
from ingest.core.pipeline import DEADLINE_MISSES_MAX
from tools.explore import oracle
from tools.explore.cores import EPOCH, FORMER_EPOCH, Cores, Decision

# The owner of a partition, from the point of view of the reader that receives the event.
ME, OTHER, NO_OWNER = 0, 1, 2
# The field of a cut record that counts how often readers started at its offset. The count affects only the text of
# the next record.
STARTS = re.compile(r";s=[0-9a-z]+")


class SentCommit(NamedTuple):
    """One commit in flight. `late`: the response may be delayed indefinitely. `answer`: 1 if stored, 0 if refused,
    -1 if there is no response yet.
    """

    offset: int
    record: str
    late: bool = False
    answer: int = -1


class Chord(NamedTuple):
    """One running chord.

    `items`: the items that the chord makes durable when it completes. `rows`: whether the chord belongs to the
    second stage. `current`: whether the pipeline waits for this chord. This flag stands in for the attempt number,
    which the pipeline compares only for equality. A chord belongs to the current assignment of its reader; chords
    of former assignments are not kept (`Readers._stale`).
    """

    partition: int
    start: int
    stop: int
    rows: bool
    items: int
    late: bool = False
    current: bool = True

    @property
    def stage(self) -> Stage:
        return Stage.ROWS if self.rows else Stage.BLOBS


class Entry(NamedTuple):
    """State of one partition in the Kafka client of a reader."""

    paused: bool = False
    draining: bool = False
    end_reported: bool = False


class Reader(NamedTuple):
    """One process. `core`: the state of its pipeline, as a number.

    `unrecorded`: batch ends, as (partition, end), that were cut since the last tick and that the broker has not
    stored yet.
    """

    core: int
    entries: tuple[Entry | None, ...]
    commits: tuple[tuple[SentCommit, ...], ...]
    chords: tuple[Chord, ...] = ()
    stopping: bool = False
    unrecorded: tuple[tuple[int, int], ...] = ()


class SharedState(NamedTuple):
    """State of one partition that outlives readers: owner, committed offset (-1 if there is none), durable items.

    `began`: messages before this offset have expired. Items that can no longer be written count as durable.
    """

    owner: int = NO_OWNER
    offset: int = -1
    record: str = ""
    durable: int = 0
    began: int = 0

    @property
    def stored(self) -> oracle.Commits:
        return oracle.Commits(self.offset, self.record)


# The shared state of every partition.
Board = tuple[SharedState, ...]
# An additional event: its description, and the states of the reader and the board (`Board`) after the event.
Branch = tuple[str, Reader, Board]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One possible event: its description, and the states of the reader and the board after the event. `broken`:
    the violated invariant, if any.

    `cut_off`: the reader has lost its partitions but has not detected the loss.
    """

    what: str
    reader: Reader
    board: Board
    fault: bool = False
    commands: tuple[do.Command, ...] = ()
    broken: str = ""
    cut_off: bool = False


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition of the model: its log for the oracle, and the parsed messages for the core."""

    source: TopicPartition
    log: oracle.Log
    parsed: tuple[tuple[int, Parsed], ...]


class Readers:
    """Possible events of one reader. Readers are interchangeable, so the owners on the board (the shared state of
    the partitions) are always given from the point of view of this reader.
    """

    def __init__(
        self, partitions: Sequence[Partition], limits: Limits, faults: int, *, expiry: bool = False
    ) -> None:
        self.partitions = tuple(partitions)
        self._expiry = expiry
        self.cores = Cores(limits, count_misses=faults >= DEADLINE_MISSES_MAX)
        self._may_fail = True
        self._numbers = {one.source: number for number, one in enumerate(partitions)}
        none = tuple(None for _ in partitions)
        self.fresh = Reader(self.cores.fresh, none, tuple(() for _ in partitions))

    def outcomes(self, reader: Reader, board: Board, *, may_fail: bool) -> Iterator[Outcome]:
        """Yields every event that can happen to this reader next, including faults if allowed."""
        self._may_fail = may_fail
        for outcome in self._outcomes(reader, board):
            if may_fail or not outcome.fault:
                yield outcome

    def _outcomes(self, reader: Reader, board: Board) -> Iterator[Outcome]:
        yield from self._group(reader, board)
        draining = any(entry is not None and entry.draining for entry in reader.entries)
        for number, entry in enumerate(reader.entries):
            if entry is not None and not draining:
                yield from self._fetch(reader, board, number, entry)
        for number, commits in enumerate(reader.commits):
            for sent in answerable(commits):
                yield from self._answer(reader, board, number, sent)
        for chord in reader.chords:
            yield from self._complete(reader, board, chord)
        yield from self._stale(reader, board)
        yield from self._tick(reader, board)

    # The group

    def _group(self, reader: Reader, board: Board) -> Iterator[Outcome]:
        owned = [n for n, entry in enumerate(reader.entries) if entry is not None and board[n].owner == ME]
        gone = [n for n, entry in enumerate(reader.entries) if entry is not None and board[n].owner != ME]
        draining = any(entry is not None and entry.draining for entry in reader.entries)
        if gone and not draining:  # the client reports the loss during a poll, and a drain runs inside a poll
            yield from self._lost(reader, board)
        elif not gone and not draining and not reader.stopping:
            for number, shared in enumerate(board):
                if shared.owner == NO_OWNER:
                    yield from self._assign(reader, board, number)
            for numbers in [*([n] for n in owned), *([owned] if len(owned) > 1 else [])]:
                yield from self._revoke(reader, board, numbers)
        if owned:
            yield from self._expire(reader, board, owned)
        if reader != self.fresh:
            yield from self._crash(reader, board, owned)
        if owned and not gone and not reader.stopping:
            stopping = reader._replace(stopping=True)
            yield from self._feed("SIGTERM", stopping, board, on.ShutdownRequested(), fault=True)

    def _assign(self, reader: Reader, board: Board, number: int) -> Iterator[Outcome]:
        shared = board[number]
        new = shared._replace(owner=ME)
        committed, start = (shared.offset, None) if shared.offset >= 0 else (None, 0)
        given = on.Assignment(self.partitions[number].source, EPOCH, committed, shared.record, start)
        became = self._entry(reader, number, Entry())
        event = on.PartitionsAssigned((given,))
        yield from self._feed(f"is assigned p{number}", became, put(board, number, new), event)

    def _revoke(self, reader: Reader, board: Board, numbers: list[int]) -> Iterator[Outcome]:
        became = reader
        for number in numbers:
            entry = reader.entries[number]
            assert entry is not None
            became = self._entry(became, number, entry._replace(draining=True))
        event = on.PartitionsRevoked(tuple(self.partitions[number].source for number in numbers))
        what = f"must release {names(numbers)}"
        yield from self._feed(what, became, board, event, fault=True)

    def _expire(self, reader: Reader, board: Board, owned: list[int]) -> Iterator[Outcome]:
        """Removes the reader from the group. The reader has not detected its removal yet."""
        for text, became, after in self._remove_owner(reader, board, owned):
            what = f"is removed from the group and loses {names(owned)}{text}"
            yield Outcome(what, became, after, True, cut_off=True)

    def _lost(self, reader: Reader, board: Board) -> Iterator[Outcome]:
        """Lets the reader detect that it was removed. The reader loses all of its partitions and its commits in
        flight.
        """
        lost = [number for number, entry in enumerate(reader.entries) if entry is not None]
        after = board
        for number in lost:
            if board[number].owner == ME:
                after = put(after, number, self._unowned(after[number], number))
        became = self.fresh._replace(core=reader.core, stopping=reader.stopping)
        event = on.PartitionsLost(tuple(self.partitions[number].source for number in lost))
        yield from self._feed(f"detects that it lost {names(lost)}", became, after, event)

    def _crash(self, reader: Reader, board: Board, owned: list[int]) -> Iterator[Outcome]:
        for text, _, after in self._remove_owner(reader, board, owned):
            yield Outcome(f"is killed and restarted{text}", self.fresh, after, True)

    def _remove_owner(
        self, reader: Reader, board: Board, owned: Sequence[int]
    ) -> Iterator[tuple[str, Reader, Board]]:
        """Removes the owner of the partitions. A commit in flight either has been stored or will never be
        stored.
        """
        if not owned:
            yield "", reader, board
            return
        number, *others = owned
        for text, became, after in self._remove_owner(reader, board, others):
            shared = self._unowned(after[number], number)
            commits = became.commits[number]
            sent = next((one for one in commits if not one.late and one.answer < 0), None)
            if sent is None:
                yield text, became, put(after, number, shared)
                continue
            rest = [one for one in commits if one is not sent]
            for answer in (0, 1):
                left = self._commits(became, number, [*rest, sent._replace(answer=answer)])
                if answer:
                    shared = stored_in(shared, sent)
                result = f"; the commit of {sent.offset} on p{number} was {'stored' if answer else 'not stored'}"
                yield text + result, left, put(after, number, shared)

    def _unowned(self, shared: SharedState, number: int) -> SharedState:
        """Returns the partition with its owner removed. Messages that have expired cannot be read again."""
        lost = self.partitions[number].log.needed(0, shared.began)
        return shared._replace(owner=NO_OWNER, durable=shared.durable | lost)

    # Messages

    def _fetch(self, reader: Reader, board: Board, number: int, entry: Entry) -> Iterator[Outcome]:
        partition, began = self.partitions[number], board[number].began
        position = None if entry.paused else self.cores.next_offset(reader.core, partition.source)
        if position is None or board[number].owner != ME:
            began = 0
        elif self._expiry:
            yield from self._expire_messages(reader, board, number, position)
        if position is not None and position < began:
            unreported = self._entry(reader, number, entry._replace(end_reported=False))
            gap = on.OffsetOutOfRange(partition.source, EPOCH, position, began)
            yield from self._feed(f"finds that p{number} begins at {began}", unreported, board, gap)
            return
        for offset, parsed in partition.parsed:
            if position is not None and offset >= position:
                event = on.MessageParsed(partition.source, EPOCH, offset, parsed)
                yield from self._feed(f"takes the message at {offset} of p{number}", reader, board, event)
                return

    def _expire_messages(self, reader: Reader, board: Board, number: int, position: int) -> Iterator[Outcome]:
        """Expires messages that no reader has read. These messages can no longer be written, and count as durable;
        messages that were read before must still become durable.
        """
        log, shared = self.partitions[number].log, board[number]
        for began in [*(message.offset + 1 for message in log.messages), log.end]:
            if began > max(position, shared.began):
                durable = shared.durable | log.needed(position, began)
                after = put(board, number, shared._replace(began=began, durable=durable))
                yield Outcome(f"loses the messages of p{number} before {began} to expiry", reader, after, True)

    def _ends(self, reader: Reader) -> list[int]:
        """Returns the partitions whose log end can be reported to the pipeline now."""
        if any(entry is not None and entry.draining for entry in reader.entries):
            return []
        logs = [one.log for one in self.partitions]
        return [
            number
            for number, entry in enumerate(reader.entries)
            if entry is not None and not entry.end_reported and logs[number].after_last < logs[number].end
        ]

    def _report_ends(self, reader: Reader, board: Board, numbers: Sequence[int]) -> Reader:
        """Returns the reader after its client has reported the log ends of the given partitions."""
        for number in numbers:
            partition, entry = self.partitions[number], reader.entries[number]
            assert entry is not None
            position = max(board[number].began, partition.log.after_last)
            event = on.EndReached(partition.source, EPOCH, position, partition.log.end)
            decision = self.cores.step(reader.core, event)
            assert not decision.commands, decision
            assert not decision.error, decision
            reported = self._entry(reader, number, entry._replace(end_reported=True))
            reader = reported._replace(core=decision.core)
        return reader

    # Events of a former assignment

    def _stale(self, reader: Reader, board: Board) -> Iterator[Outcome]:
        """Yields events of a former assignment of this process, and messages that it has already accepted.

        Such events may arrive at any time. The former assignment may have been for a deleted topic of the same
        name, so items that these events report as durable do not count as durable. The pipeline must ignore these
        events, so they do not lead to new states.
        """
        stale = [
            event
            for number, entry in enumerate(reader.entries)
            if entry is not None
            for event in self._stale_events(reader, number)
        ]
        if not self.cores.ignores(reader.core, tuple(stale)):
            for event in stale:
                yield from self._feed(describe_event(event), reader, board, event, fault=True)

    def _stale_events(self, reader: Reader, number: int) -> Iterator[on.Event]:
        partition = self.partitions[number]
        source, log = partition.source, partition.log
        taken = self.cores.taken_until(reader.core, source)
        for offset, parsed in partition.parsed:
            yield on.MessageParsed(source, FORMER_EPOCH, offset, parsed)
            if offset < taken:
                yield on.MessageParsed(source, EPOCH, offset, parsed)
        yield on.EndReached(source, FORMER_EPOCH, log.after_last, log.end)
        for sent in reader.commits[number]:
            yield on.CommitFailed(source, FORMER_EPOCH, sent.offset, sent.record, "the group is at another epoch")
        for batch_id, flight in self.cores.flights(reader.core).items():
            if flight.batch.source == source:
                yield on.FlushSucceeded(batch_id, FORMER_EPOCH, flight.stage)
                yield on.FlushFailed(batch_id, FORMER_EPOCH, flight.stage, flight.attempt, "a sink refused")
                yield on.DispatchFailed(batch_id, FORMER_EPOCH, flight.stage, flight.attempt, "redis")

    # Commits

    def _answer(self, reader: Reader, board: Board, number: int, sent: SentCommit) -> Iterator[Outcome]:
        commits, shared, entry = reader.commits[number], board[number], reader.entries[number]
        without = self._commits(reader, number, [one for one in commits if one is not sent])
        source = self.partitions[number].source
        ours = shared.owner == ME and entry is not None
        stored = put(board, number, stored_in(shared, sent)) if ours else board
        yes = on.Committed(source, EPOCH, sent.offset, sent.record)
        no = on.CommitFailed(source, EPOCH, sent.offset, sent.record, "the group is at another epoch")
        sent_text = f"the commit of {sent.offset} on p{number}"
        if sent.answer >= 0:
            text = "was stored" if sent.answer else "was refused"
            yield from self._feed(
                f"is informed that {sent_text} {text}", without, board, yes if sent.answer else no
            )
        elif sent.late:
            arrived = self._commits(without, number, [*without.commits[number], sent._replace(answer=int(ours))])
            what = f"sent {sent_text} long ago: it arrives and is {'stored' if ours else 'refused'}"
            yield Outcome(what, self.tidy(arrived, stored), stored)
        else:
            text = "is stored" if ours else "is refused, because the partition has another owner"
            yield from self._feed(f"is informed that {sent_text} {text}", without, stored, yes if ours else no)
            refused = f"is informed that {sent_text} is refused: stale epoch"
            yield from self._feed(refused, without, board, no, fault=True)
            unanswered = f"gets no response to {sent_text}, which was"
            yield Outcome(f"{unanswered} stored", self.tidy(without, stored), stored, True)
            yield Outcome(f"{unanswered} not stored", without, board, True)
            late = self._commits(without, number, [*without.commits[number], sent._replace(late=True)])
            yield Outcome(f"waits for {sent_text}, which is late", late, board, True)

    # Chords

    def _complete(self, reader: Reader, board: Board, chord: Chord) -> Iterator[Outcome]:
        number = chord.partition
        without = reader._replace(chords=tuple(one for one in reader.chords if one is not chord))
        shared = board[number]
        durable = put(board, number, shared._replace(durable=shared.durable | chord.items))
        done, failed, attempt = self._reports(reader.core, chord)
        chord_key = done.batch_id, done.epoch, done.stage
        items = f"the {done.stage} of [{chord.start}, {chord.stop}) of p{number}"
        late = self._chords(without, [*without.chords, chord._replace(late=True)])
        if chord.late:
            yield from self._feed(f"is informed late that {items} are durable", without, durable, done)
            yield from self._feed(f"is informed late that {items} failed", without, board, failed)
            return
        yield from self._feed(f"is informed that {items} are durable", without, durable, done)
        yield from self._feed(f"is informed that {items} failed", without, board, failed, fault=True)
        twice = f"is informed, for the first of two times, that {items} are durable"
        yield from self._feed(twice, late, durable, done, fault=True)
        yield Outcome(f"gets no completion of {items}: lost", without, board, True)
        yield Outcome(f"gets no completion of {items}: late", late, board, True)
        for large in (False, True):
            text = "do not fit into Redis" if large else "could not be staged"
            event = on.DispatchFailed(*chord_key, attempt, "redis", large)
            yield from self._feed(f"is informed that {items} {text}", without, board, event, fault=True)

    def _reports(self, core: int, chord: Chord) -> tuple[on.FlushSucceeded, on.FlushFailed, int]:
        """Returns the two reports that a chord can send (success and failure), and the chord's attempt number."""
        batch_id = self._batch_id(chord)
        flight = self.cores.flight(core, batch_id)
        attempt = 0 if flight is None else flight.attempt - (not chord.current)
        chord_key = batch_id, EPOCH, chord.stage
        return on.FlushSucceeded(*chord_key), on.FlushFailed(*chord_key, attempt, "a sink refused"), attempt

    def _batch_id(self, chord: Chord) -> str:
        return f"{self.partitions[chord.partition].source}-{chord.start}-{chord.stop}"

    def wiped(self, reader: Reader) -> Reader:
        """Returns the reader as it is after Redis has lost all data: none of the reader's chords will complete."""
        return reader._replace(chords=())

    def exchanged(self, reader: Reader) -> Reader:
        """Returns the reader with the two partitions swapped."""
        chords = tuple(sorted(chord._replace(partition=1 - chord.partition) for chord in reader.chords))
        unrecorded = tuple(sorted((1 - number, end) for number, end in reader.unrecorded))
        core = self.cores.mirrored(reader.core)
        exchanged = Reader(core, reader.entries[::-1], reader.commits[::-1], (), reader.stopping, unrecorded)
        return self._chords(exchanged, chords)

    # Time

    def _tick(self, reader: Reader, board: Board) -> Iterator[Outcome]:
        """Advances the clock by half a second. By that time, every request that is not lost or late has a
        response.
        """
        prompt = any(not chord.late for chord in reader.chords)
        if prompt or not all(sent.late for commits in reader.commits for sent in commits):
            return
        # The pipeline reads a reported log end only at the next tick, so the report is modelled just before the
        # tick.
        ends = self._ends(reader)
        for numbers in ([], *([number] for number in ends), *([ends] if len(ends) > 1 else [])):
            fetched = f", having fetched to the end of {names(numbers)}" if numbers else ""
            ready = self._report_ends(reader, board, numbers)._replace(unrecorded=())
            yield from self._feed(f"waits for a tick{fetched}", ready, board, on.Ticked())

    # The pipeline and its commands

    def _feed(
        self, what: str, reader: Reader, board: Board, event: on.Event, *, fault: bool = False
    ) -> Iterator[Outcome]:
        if fault and not self._may_fail:
            return
        decision = self.cores.step(reader.core, event)
        became = self._cut(self._outdated(reader, decision), board, decision.cut)
        by_clock = isinstance(event, on.Ticked)
        branches: list[Branch] = [("", became, board)]
        broken = decision.error
        for command in decision.commands:
            if broken:
                break
            following: list[Branch] = []
            for text, one, after in branches:
                broken = broken or self._judge(one, after, command, by_clock=by_clock)
                performed = self._perform(one, after, command)
                following += [(text + more, reader, board) for more, reader, board in performed]
            branches = following
        for text, one, after in branches:
            yield Outcome(
                what + text, one if broken else self.tidy(one, after), after, fault, decision.commands, broken
            )

    def _outdated(self, reader: Reader, decision: Decision) -> Reader:
        """Returns the reader after the decision. Chords that the pipeline no longer waits for are marked."""
        again = {one.batch.id for one in decision.commands if isinstance(one, do.Dispatch)}
        chords = []
        for chord in reader.chords:
            if chord.current:
                batch_id = self._batch_id(chord)
                flight = self.cores.flight(decision.core, batch_id) if batch_id not in again else None
                current = flight is not None and flight.phase is Phase.FLUSHING and flight.stage is chord.stage
                chord = chord if current else chord._replace(current=False)
            chords.append(chord)
        return self._chords(reader, chords)._replace(core=decision.core)

    def _cut(self, reader: Reader, board: Board, cut: frozenset[str]) -> Reader:
        """Returns the reader with the ends of its new batches added to `unrecorded`."""
        if not cut:
            return reader
        unrecorded = set(reader.unrecorded)
        for batch_id in cut:
            flight = self.cores.flight(reader.core, batch_id)
            assert flight is not None
            number, end = self._numbers[flight.batch.source], flight.batch.offsets.stop
            if end not in board[number].stored.ends:
                unrecorded.add((number, end))
        return reader._replace(unrecorded=tuple(sorted(unrecorded)))

    def tidy(self, reader: Reader, board: Board) -> Reader:
        """Returns the reader without parts that cannot have any further effect."""
        if reader.unrecorded:
            unrecorded = tuple(
                (number, end)
                for number, end in reader.unrecorded
                if reader.entries[number] is not None
                and end > board[number].offset
                and end not in board[number].stored.ends
            )
            if unrecorded != reader.unrecorded:
                reader = reader._replace(unrecorded=unrecorded)
        if not reader.chords:
            return reader
        kept = [chord for chord in reader.chords if not self._is_dead(reader.core, board, chord)]
        return reader if len(kept) == len(reader.chords) else reader._replace(chords=tuple(kept))

    def _is_dead(self, core: int, board: Board, chord: Chord) -> bool:
        """Returns True if the chord can be dropped, because its items are durable, its reports do not change the
        pipeline, and its batch or stage is complete.
        """
        if chord.items & ~board[chord.partition].durable:
            return False
        flight = self.cores.flight(core, self._batch_id(chord))
        if flight is not None and flight.stage is chord.stage:
            return False
        return all(self.cores.step(core, report).has_no_effect(core) for report in self._reports(core, chord)[:2])

    def _judge(self, reader: Reader, board: Board, command: do.Command, *, by_clock: bool) -> str:
        match command:
            case do.Commit():
                number = self._numbers[command.source]
                entry, shared = reader.entries[number], board[number]
                if entry is None or command.epoch != EPOCH:
                    return f"it commits {command.offset} on p{number}, which is not assigned to it"
                log, owner = self.partitions[number].log, shared.owner == ME
                new = oracle.Commits(command.offset, command.record)
                return oracle.commit(
                    log, shared.stored, shared.durable, new, self._halves(reader, number), owner=owner
                )
            case do.Dispatch():
                number = self._numbers[command.batch.source]
                batch, log, shared = command.batch, self.partitions[number].log, board[number]
                judged = oracle.Batch(
                    batch.offsets.start,
                    batch.offsets.stop,
                    command.stage is Stage.ROWS,
                    command.attempt == 1,
                    (number, batch.offsets.stop) in reader.unrecorded,
                    batch.cut_by is CutReason.BYTES,
                )
                return oracle.dispatch(log, shared.stored, shared.durable, judged, owner=shared.owner == ME)
            case do.Discard():
                number = self._numbers[command.batch.source]
                offsets = command.batch.offsets
                return oracle.discard(
                    self.partitions[number].log, board[number].durable, offsets.start, offsets.stop
                )
            case do.Release():
                return self._judge_release(reader, board, command, by_clock=by_clock)
        return ""

    def _halves(self, reader: Reader, number: int) -> frozenset[int]:
        """Returns the end offsets of those batches in flight that are parts of a batch too large for Redis."""
        flights = [flight.batch for flight in self.cores.flights(reader.core).values()]
        source = self.partitions[number].source
        return frozenset(
            batch.offsets.stop for batch in flights if batch.source == source and batch.cut_by is CutReason.BYTES
        )

    def _judge_release(self, reader: Reader, board: Board, command: do.Release, *, by_clock: bool) -> str:
        """Checks a release with work in flight: chords with items that are not durable, and commits that would
        change the stored commit.

        The response to a late commit may be mistaken for the response to an identical commit; this repeats work
        but loses no message.
        """
        chords = commits = 0
        for number in (self._numbers[source] for source in command.sources):
            entry, shared = reader.entries[number], board[number]
            if entry is not None and shared.owner == ME:
                new = [sent for sent in reader.commits[number] if stored_in(shared, sent) != shared]
                commits += len(new) if not any(sent.late for sent in reader.commits[number]) else 0
                owned = [one for one in reader.chords if one.partition == number]
                chords += sum(not one.late and bool(one.items & ~shared.durable) for one in owned)
        return oracle.release(chords=chords, commits=commits, by_clock=by_clock)

    def _perform(self, reader: Reader, board: Board, command: do.Command) -> Iterator[tuple[str, Reader, Board]]:
        match command:
            case do.Dispatch():
                yield "", self._chords(reader, [*reader.chords, self._chord(command)]), board
            case do.Commit():
                number = self._numbers[command.source]
                sent = SentCommit(command.offset, command.record)
                yield "", self._commits(reader, number, [*reader.commits[number], sent]), board
            case do.Pause() | do.Resume():
                yield "", self._paused(reader, command.sources, isinstance(command, do.Pause)), board
            case do.Release():
                numbers = [self._numbers[source] for source in command.sources]
                yield from self._released(reader, board, numbers)
            case do.Stop():
                owned = [number for number, shared in enumerate(board) if shared.owner == ME]
                for text, _, after in self._remove_owner(reader, board, owned):
                    yield f"; it ends and is restarted{text}", self.fresh, after
            case _:
                yield "", reader, board

    def _released(self, reader: Reader, board: Board, numbers: list[int]) -> Iterator[tuple[str, Reader, Board]]:
        owned = [number for number in numbers if board[number].owner == ME]
        for text, became, after in self._remove_owner(reader, board, owned):
            for number in numbers:
                became = self._entry(became, number, None)
                became = self._commits(became, number, [])
            chords = [one for one in became.chords if one.partition not in numbers]
            yield text, self._chords(became, chords), after

    def _chord(self, command: do.Dispatch) -> Chord:
        batch, rows = command.batch, command.stage is Stage.ROWS
        number = self._numbers[batch.source]
        return Chord(
            number,
            batch.offsets.start,
            batch.offsets.stop,
            rows,
            self._items(number, batch, rows=rows),
        )

    def _items(self, number: int, batch: Batch, *, rows: bool) -> int:
        """Returns the items that are actually in the batch, regardless of its range."""
        held = {one.offset for one in batch.segments} | {one.offset for one in batch.rejects}
        messages = [message for message in self.partitions[number].log.messages if message.offset in held]
        return sum(message.rows if rows else message.blob for message in messages)

    def _paused(self, reader: Reader, sources: Sequence[TopicPartition], paused: bool) -> Reader:
        for source in sources:
            number = self._numbers[source]
            entry = reader.entries[number]
            if entry is not None:
                reader = self._entry(reader, number, entry._replace(paused=paused))
        return reader

    def _entry(self, reader: Reader, number: int, entry: Entry | None) -> Reader:
        return reader._replace(entries=put(reader.entries, number, entry))

    def _commits(self, reader: Reader, number: int, commits: Sequence[SentCommit]) -> Reader:
        return reader._replace(commits=put(reader.commits, number, tuple(commits)))

    def _chords(self, reader: Reader, chords: Sequence[Chord]) -> Reader:
        """Returns the reader with the given chords. Of several equal late chords, only one is kept, because the
        others have no effect.
        """
        late = {chord for chord in chords if chord.late}
        return reader._replace(chords=tuple(sorted([*late, *(chord for chord in chords if not chord.late)])))


def describe_event(event: Any) -> str:
    """Returns a short description of a past event."""
    source = getattr(event, "source", None)
    subject = f"p{source.partition}" if source is not None else event.batch_id.replace("t-", "p", 1)
    name = f"{type(event).__name__} of {subject}"
    if isinstance(event, on.MessageParsed):
        name = f"the message at {event.offset} of {subject}"
    elif not isinstance(event, on.EndReached | on.CommitFailed):
        name = f"{name}, {event.stage}"
    return f"receives {name} again" if event.epoch == EPOCH else f"receives {name}, of a former assignment"


def stored_in(shared: SharedState, sent: SentCommit) -> SharedState:
    """Returns the state of the partition after the broker has stored this commit. The number of starts is left out
    of the cut record, because an assignment resets it.
    """
    return shared._replace(offset=sent.offset, record=STARTS.sub("", sent.record))


def answerable(commits: Sequence[SentCommit]) -> list[SentCommit]:
    """Returns the commits whose response may arrive now. Responses arrive in the order in which the broker sends
    them.
    """
    answered = [sent for sent in commits if sent.answer >= 0]
    prompt = [sent for sent in commits if sent.answer < 0 and not sent.late]
    late = [sent for sent in commits if sent.answer < 0 and sent.late]
    return [*(answered or prompt)[:1], *late]


def put(values: tuple, number: int, value: object) -> tuple:  # type: ignore[type-arg]
    """Returns the tuple with one value replaced."""
    return (*values[:number], value, *values[number + 1 :])


def names(numbers: Sequence[int]) -> str:
    """Returns the names of partitions, for example `p0 and p1`."""
    return " and ".join(f"p{number}" for number in numbers)
