"""Readers with real pipelines, and the events of one reader: from the group, the fleet and the clock.

Everything here concerns one reader and the shared state of the partitions (`Shared`). Functions yield possible
next events as `Outcome`s: a regular event costs nothing, a fault costs one.

A reader has its own clock, which moves by ticks: no order between the clocks of two readers is assumed. Without a
fault a response arrives before the next tick.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.flight import Phase
from ingest.core.limits import Limits
from ingest.core.model import Batch, CutReason, Stage, TopicPartition
from ingest.core.model import Outcome as Parsed
from tools.explore import oracle
from tools.explore.cores import EPOCH, FORMER_EPOCH, Cores, Decision

# Owners of a partition, as seen by the reader of the event.
ME, OTHER, NOBODY = 0, 1, 2
# Counts of starts in a cut record beyond this are equivalent: no decision reads the exact number.
STARTS = re.compile(r";s=[0-9a-z]+")


class Sent(NamedTuple):
    """One commit in flight. `late`: it may take any time; `answer` -1: none yet, 1: stored, 0: refused."""

    offset: int
    record: str
    late: bool = False
    answer: int = -1


class Chord(NamedTuple):
    """One running chord. `items`: the items that it makes durable when it completes; `rows`: its stage.

    `ours`: it belongs to its reader's current assignment. `current`: the pipeline waits for this chord.
    Epochs and attempts are only compared for equality, so these two flags replace them.
    """

    partition: int
    start: int
    stop: int
    rows: bool
    items: int
    late: bool = False
    ours: bool = True
    current: bool = True

    @property
    def stage(self) -> Stage:
        return Stage.ROWS if self.rows else Stage.BLOBS


class Entry(NamedTuple):
    """One partition as seen by a reader's client."""

    paused: bool = False
    draining: bool = False
    end_told: bool = False


class Reader(NamedTuple):
    """One process. `core` numbers its pipeline's state."""

    core: int
    entries: tuple[Entry | None, ...]
    commits: tuple[tuple[Sent, ...], ...]
    chords: tuple[Chord, ...] = ()
    stopping: bool = False


class Shared(NamedTuple):
    """State of one partition that outlives readers: owner, committed offset (-1: none), durable items."""

    owner: int = NOBODY
    offset: int = -1
    record: str = ""
    durable: int = 0

    @property
    def stored(self) -> oracle.Commits:
        return oracle.Commits(self.offset, self.record)


Board = tuple[Shared, ...]
# An additional event, and the reader and board after it.
Branch = tuple[str, Reader, Board]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One possible event: a description, and the reader and board after it. `broken`: it violates an invariant."""

    what: str
    reader: Reader
    board: Board
    fault: bool = False
    commands: tuple[do.Command, ...] = ()
    broken: str = ""


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition of the model: its log for the oracle, and the parsed messages for the core."""

    source: TopicPartition
    log: oracle.Log
    parsed: tuple[tuple[int, Parsed], ...]


class Readers:
    """Possible events of one reader. Readers are interchangeable, so the board is always seen from this one."""

    def __init__(self, partitions: Sequence[Partition], limits: Limits) -> None:
        self.partitions = tuple(partitions)
        self.cores = Cores(limits)
        self._may_fail = True
        self._numbers = {one.source: number for number, one in enumerate(partitions)}
        none = tuple(None for _ in partitions)
        self.fresh = Reader(self.cores.fresh, none, tuple(() for _ in partitions))

    def outcomes(self, reader: Reader, board: Board, *, may_fail: bool) -> Iterator[Outcome]:
        """All possible events of this reader now, including faults if allowed."""
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
            for sent in in_turn(commits):
                yield from self._answer(reader, board, number, sent)
        for chord in reader.chords:
            yield from self._complete(reader, board, chord)
        yield from self._tick(reader, board)

    # The group

    def _group(self, reader: Reader, board: Board) -> Iterator[Outcome]:
        mine = [n for n, entry in enumerate(reader.entries) if entry is not None and board[n].owner == ME]
        gone = [n for n, entry in enumerate(reader.entries) if entry is not None and board[n].owner != ME]
        draining = any(entry is not None and entry.draining for entry in reader.entries)
        if gone and not draining:  # the client reports it in a poll, and a drain is inside one
            yield from self._lost(reader, board)
        elif not gone and not draining and not reader.stopping:
            for number, shared in enumerate(board):
                if shared.owner == NOBODY:
                    yield from self._assign(reader, board, number)
            for numbers in [*([n] for n in mine), *([mine] if len(mine) > 1 else [])]:
                yield from self._revoke(reader, board, numbers)
        if mine:
            yield from self._expire(reader, board, mine)
        if reader != self.fresh:
            yield from self._crash(reader, board, mine)
        if mine and not gone and not reader.stopping:
            stopping = reader._replace(stopping=True)
            yield from self._feed("SIGTERM", stopping, board, on.ShutdownRequested(), fault=True)

    def _assign(self, reader: Reader, board: Board, number: int) -> Iterator[Outcome]:
        shared = board[number]
        new = shared._replace(owner=ME)
        committed, start = (shared.offset, None) if shared.offset >= 0 else (None, 0)
        record = STARTS.sub(";s=1", shared.record)
        given = on.Assignment(self.partitions[number].source, EPOCH, committed, record, start)
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
        what = f"has to give back {names(numbers)}"
        yield from self._feed(what, became, board, event, fault=True)

    def _expire(self, reader: Reader, board: Board, mine: list[int]) -> Iterator[Outcome]:
        """The group has removed the reader, which does not know it yet."""
        for text, became, after in self._give_up(reader, board, mine):
            yield Outcome(f"is taken for dead by the group, which takes {names(mine)}{text}", became, after, True)

    def _lost(self, reader: Reader, board: Board) -> Iterator[Outcome]:
        """It detects that it was removed: it loses all of its partitions, with the commits in flight."""
        lost = [number for number, entry in enumerate(reader.entries) if entry is not None]
        after = board
        for number in lost:
            if board[number].owner == ME:
                after = put(after, number, after[number]._replace(owner=NOBODY))
        became = reader._replace(entries=self.fresh.entries, commits=self.fresh.commits)
        became = self._chords(became, [chord._replace(late=True, ours=False) for chord in reader.chords])
        event = on.PartitionsLost(tuple(self.partitions[number].source for number in lost))
        yield from self._feed(f"learns that it lost {names(lost)}", became, after, event)

    def _crash(self, reader: Reader, board: Board, mine: list[int]) -> Iterator[Outcome]:
        for text, _, after in self._give_up(reader, board, mine):
            yield Outcome(f"is killed and starts anew{text}", self.fresh, after, True)

    def _give_up(self, reader: Reader, board: Board, mine: Sequence[int]) -> Iterator[tuple[str, Reader, Board]]:
        """The partitions have no owner any more. A commit in flight was stored before that, or never will be."""
        if not mine:
            yield "", reader, board
            return
        number, *others = mine
        for text, became, after in self._give_up(reader, board, others):
            shared = after[number]._replace(owner=NOBODY)
            commits = became.commits[number]
            sent = next((one for one in commits if not one.late and one.answer < 0), None)
            if sent is None:
                yield text, became, put(after, number, shared)
                continue
            rest = [one for one in commits if one is not sent]
            for answer in (0, 1):
                left = self._commits(became, number, [*rest, sent._replace(answer=answer)])
                if answer:
                    shared = shared._replace(offset=sent.offset, record=sent.record)
                said = f"; the commit of {sent.offset} on p{number} was {'stored' if answer else 'not stored'}"
                yield text + said, left, put(after, number, shared)

    # Messages

    def _fetch(self, reader: Reader, board: Board, number: int, entry: Entry) -> Iterator[Outcome]:
        partition = self.partitions[number]
        messages, source = partition.log.messages, partition.source
        after_last = messages[-1].offset + 1
        if not entry.end_told and after_last < partition.log.end:
            told = self._entry(reader, number, entry._replace(end_told=True))
            event: on.Event = on.EndReached(source, EPOCH, after_last, partition.log.end)
            yield from self._feed(f"fetched up to the end of p{number}", told, board, event)
        position = None if entry.paused else self.cores.next_offset(reader.core, source)
        for offset, parsed in partition.parsed:
            if position is not None and offset >= position:
                event = on.MessageParsed(source, EPOCH, offset, parsed)
                yield from self._feed(f"takes the message at {offset} of p{number}", reader, board, event)
                return

    # Commits

    def _answer(self, reader: Reader, board: Board, number: int, sent: Sent) -> Iterator[Outcome]:
        commits, shared, entry = reader.commits[number], board[number], reader.entries[number]
        without = self._commits(reader, number, [one for one in commits if one is not sent])
        source = self.partitions[number].source
        ours = shared.owner == ME and entry is not None
        stored = put(board, number, shared._replace(offset=sent.offset, record=sent.record)) if ours else board
        yes = on.Committed(source, EPOCH, sent.offset, sent.record)
        no = on.CommitFailed(source, EPOCH, sent.offset, sent.record, "the group is at another epoch")
        this = f"the commit of {sent.offset} on p{number}"
        if sent.answer >= 0:
            text = "was stored" if sent.answer else "was refused"
            yield from self._feed(f"learns that {this} {text}", without, board, yes if sent.answer else no)
        elif sent.late:
            arrived = self._commits(without, number, [*without.commits[number], sent._replace(answer=int(ours))])
            yield Outcome(f"sent {this} long ago: it arrives, {'stored' if ours else 'refused'}", arrived, stored)
        else:
            text = "is stored" if ours else "is refused, the partition is not its own"
            yield from self._feed(f"learns that {this} {text}", without, stored, yes if ours else no)
            yield from self._feed(f"learns that {this} is refused: stale epoch", without, board, no, fault=True)
            yield Outcome(f"gets no answer to {this}, which was stored", without, stored, True)
            yield Outcome(f"gets no answer to {this}, which was not stored", without, board, True)
            late = self._commits(without, number, [*without.commits[number], sent._replace(late=True)])
            yield Outcome(f"waits for {this}, which is late", late, board, True)

    # Chords

    def _complete(self, reader: Reader, board: Board, chord: Chord) -> Iterator[Outcome]:
        number = chord.partition
        without = reader._replace(chords=tuple(one for one in reader.chords if one is not chord))
        shared = board[number]
        durable = put(board, number, shared._replace(durable=shared.durable | chord.items))
        done, failed, attempt = self._reports(reader.core, chord)
        said = done.batch_id, done.epoch, done.stage
        this = (
            f"the {done.stage} of [{chord.start}, {chord.stop}) of p{number}{'' if chord.ours else ', long ago,'}"
        )
        late = self._chords(without, [*without.chords, chord._replace(late=True)])
        if chord.late:
            yield from self._feed(f"hears late that {this} are durable", without, durable, done)
            yield from self._feed(f"hears late that {this} failed", without, board, failed)
            return
        yield from self._feed(f"hears that {this} are durable", without, durable, done)
        yield from self._feed(f"hears that {this} failed", without, board, failed, fault=True)
        yield from self._feed(f"hears that {this} are durable, and will again", late, durable, done, fault=True)
        yield Outcome(f"hears nothing of {this}: lost", without, board, True)
        yield Outcome(f"hears nothing of {this}: late", late, board, True)
        for large in (False, True):
            text = "do not fit into Redis" if large else "could not be staged"
            event = on.DispatchFailed(*said, attempt, "redis", large)
            yield from self._feed(f"hears that {this} {text}", without, board, event, fault=True)

    def _reports(self, core: int, chord: Chord) -> tuple[on.FlushSucceeded, on.FlushFailed, int]:
        """Possible reports of a chord: durable or failed, with its attempt."""
        batch_id = self._batch_id(chord)
        flight = self.cores.flight(core, batch_id)
        attempt = 0 if flight is None else flight.attempt - (chord.ours and not chord.current)
        said = batch_id, EPOCH if chord.ours else FORMER_EPOCH, chord.stage
        return on.FlushSucceeded(*said), on.FlushFailed(*said, attempt, "a sink refused"), attempt

    def _batch_id(self, chord: Chord) -> str:
        return f"{self.partitions[chord.partition].source}-{chord.start}-{chord.stop}"

    def wiped(self, reader: Reader) -> Reader:
        """Redis lost everything: no chord of this reader will ever complete."""
        return reader._replace(chords=())

    # Time

    def _tick(self, reader: Reader, board: Board) -> Iterator[Outcome]:
        """Half a second passes. Everything that is not lost or late has been answered by then."""
        prompt = any(not chord.late for chord in reader.chords)
        if not prompt and all(sent.late for commits in reader.commits for sent in commits):
            yield from self._feed("waits for a tick", reader, board, on.Ticked())

    # The pipeline and its commands

    def _feed(
        self, what: str, reader: Reader, board: Board, event: on.Event, *, fault: bool = False
    ) -> Iterator[Outcome]:
        if fault and not self._may_fail:
            return
        decision = self.cores.step(reader.core, event)
        became = self._outdated(reader, decision)
        by_clock = isinstance(event, on.Ticked)
        branches: list[Branch] = [("", became, board)]
        broken = decision.error
        for command in decision.commands:
            if broken:
                break
            following: list[Branch] = []
            for text, one, after in branches:
                broken = broken or self._judge(one, after, command, decision.cut, by_clock=by_clock)
                performed = self._perform(one, after, command)
                following += [(text + more, reader, board) for more, reader, board in performed]
            branches = following
        for text, one, after in branches:
            yield Outcome(
                what + text, one if broken else self.tidy(one, after), after, fault, decision.commands, broken
            )

    def _outdated(self, reader: Reader, decision: Decision) -> Reader:
        """The reader after the decision, with chords marked that the pipeline no longer waits for."""
        again = {one.batch.id for one in decision.commands if isinstance(one, do.Dispatch)}
        chords = []
        for chord in reader.chords:
            if chord.current:
                batch_id = self._batch_id(chord)
                flight = (
                    self.cores.flight(decision.core, batch_id) if chord.ours and batch_id not in again else None
                )
                current = flight is not None and flight.phase is Phase.FLUSHING and flight.stage is chord.stage
                chord = chord if current else chord._replace(current=False)
            chords.append(chord)
        return self._chords(reader, chords)._replace(core=decision.core)

    def tidy(self, reader: Reader, board: Board) -> Reader:
        """The reader without chords that can have no further effect."""
        if not reader.chords:
            return reader
        kept = [chord for chord in reader.chords if not self._is_dead(reader.core, board, chord)]
        return reader if len(kept) == len(reader.chords) else reader._replace(chords=tuple(kept))

    def _is_dead(self, core: int, board: Board, chord: Chord) -> bool:
        """Whether all its items are durable, no report changes the pipeline, and its batch or stage is over."""
        if chord.items & ~board[chord.partition].durable:
            return False
        flight = self.cores.flight(core, self._batch_id(chord)) if chord.ours else None
        if flight is not None and flight.stage is chord.stage:
            return False
        return all(self.cores.step(core, report).is_nothing(core) for report in self._reports(core, chord)[:2])

    def _judge(
        self, reader: Reader, board: Board, command: do.Command, cut: frozenset[str], *, by_clock: bool
    ) -> str:
        match command:
            case do.Commit():
                number = self._numbers[command.source]
                entry, shared = reader.entries[number], board[number]
                if entry is None or command.epoch != EPOCH:
                    return f"it commits {command.offset} on p{number}, which is not assigned to it"
                log, owner = self.partitions[number].log, shared.owner == ME
                return oracle.commit(
                    log, shared.stored, shared.durable, command.offset, command.record, owner=owner
                )
            case do.Dispatch():
                number = self._numbers[command.batch.source]
                batch, log, shared = command.batch, self.partitions[number].log, board[number]
                judged = oracle.Batch(
                    batch.offsets.start,
                    batch.offsets.stop,
                    command.stage is Stage.ROWS,
                    command.attempt == 1,
                    batch.id in cut,
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

    def _judge_release(self, reader: Reader, board: Board, command: do.Release, *, by_clock: bool) -> str:
        """Checks work in flight: chords with items that are not durable, and commits that change the stored one.

        The response to a late commit may be mistaken for that of an equal one, which costs a repetition and no
        message.
        """
        chords = commits = 0
        for number in (self._numbers[source] for source in command.sources):
            entry, shared = reader.entries[number], board[number]
            if entry is not None and shared.owner == ME:
                new = [sent for sent in reader.commits[number] if (sent.offset, sent.record) != shared.stored]
                commits += len(new) if not any(sent.late for sent in reader.commits[number]) else 0
                mine = [one for one in reader.chords if one.partition == number and one.ours]
                chords += sum(not one.late and bool(one.items & ~shared.durable) for one in mine)
        return oracle.release(chords=chords, commits=commits, by_clock=by_clock)

    def _perform(self, reader: Reader, board: Board, command: do.Command) -> Iterator[tuple[str, Reader, Board]]:
        match command:
            case do.Dispatch():
                yield "", self._chords(reader, [*reader.chords, self._chord(command)]), board
            case do.Commit():
                number = self._numbers[command.source]
                sent = Sent(command.offset, command.record)
                yield "", self._commits(reader, number, [*reader.commits[number], sent]), board
            case do.Pause() | do.Resume():
                yield "", self._paused(reader, command.sources, isinstance(command, do.Pause)), board
            case do.Release():
                numbers = [self._numbers[source] for source in command.sources]
                yield from self._released(reader, board, numbers)
            case do.Stop():
                mine = [number for number, shared in enumerate(board) if shared.owner == ME]
                for text, _, after in self._give_up(reader, board, mine):
                    yield f"; it ends and starts anew{text}", self.fresh, after
            case _:
                yield "", reader, board

    def _released(self, reader: Reader, board: Board, numbers: list[int]) -> Iterator[tuple[str, Reader, Board]]:
        mine = [number for number in numbers if board[number].owner == ME]
        for text, became, after in self._give_up(reader, board, mine):
            for number in numbers:
                became = self._entry(became, number, None)
                became = self._commits(became, number, [])
            former = {number for number in numbers if reader.entries[number] is not None}
            chords = [
                one._replace(late=True, ours=False) if one.partition in former else one for one in became.chords
            ]
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
        """The items actually in the batch, regardless of its range."""
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

    def _commits(self, reader: Reader, number: int, commits: Sequence[Sent]) -> Reader:
        return reader._replace(commits=put(reader.commits, number, tuple(commits)))

    def _chords(self, reader: Reader, chords: Sequence[Chord]) -> Reader:
        """Removes duplicate chords: of two equal late chords, the second has no further effect."""
        late = {chord for chord in chords if chord.late}
        return reader._replace(chords=tuple(sorted([*late, *(chord for chord in chords if not chord.late)])))


def in_turn(commits: Sequence[Sent]) -> list[Sent]:
    """Commits whose response may arrive now: responses arrive in the order in which the broker sent them."""
    answered = [sent for sent in commits if sent.answer >= 0]
    prompt = [sent for sent in commits if sent.answer < 0 and not sent.late]
    late = [sent for sent in commits if sent.answer < 0 and sent.late]
    return [*(answered or prompt)[:1], *late]


def put(values: tuple, number: int, value: object) -> tuple:  # type: ignore[type-arg]
    """The tuple with one value replaced."""
    return (*values[:number], value, *values[number + 1 :])


def names(numbers: Sequence[int]) -> str:
    """`p0 and p1`."""
    return " and ".join(f"p{number}" for number in numbers)
