"""The model of the core: two readers with the real `Pipeline`, one or two partitions, a few messages, and faults.

A state is four numbers: both readers, the partitions together (the board), and the number of faults. The events of
one reader do not depend on the other, so they are computed once for each pair of reader and board,
and looked up for every state that contains it. Readers are interchangeable: a state and its mirror image are one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ingest.core import commands as do
from ingest.core.limits import Limits
from ingest.core.model import Blob, Metric, MetricKind, Outcome, Reject, Row, Segment, TopicPartition
from tools.explore import oracle
from tools.explore.numbers import Numbers
from tools.explore.readers import ME, NOBODY, Board, Partition, Reader, Readers, Shared

LIMITS = Limits(
    batch_messages_max=2,
    batch_age_seconds_max=0.5,
    batch_age_idle_seconds=0.5,
    in_flight_batches_max=2,
    flush_deadline_seconds=1.0,
    drain_deadline_seconds=1.0,
    retry_backoff_seconds=0.5,
    retry_backoff_seconds_max=0.5,
    undispatched_seconds_max=0.5,
    commit_interval_seconds=0.5,
    commit_answer_seconds_max=1.0,
    commit_repeat_seconds=1e9,
    cut_record_seconds_max=0.5,
    plan_seconds_max=0.5,
    pause_after_seconds=0.5,
    reject_ratio_max=1.0,
    reject_unattributed_ratio_max=1.0,
    reject_window=1,
)
WIDTH = 24
MASK = (1 << WIDTH) - 1


def segment(offset: int, *, blob: bool) -> Segment:
    """The smallest segment that has rows, and optionally a blob."""
    return Segment(
        org_id=1,
        project_id=1,
        replay_id=f"replay-{offset}",
        segment_id=0,
        retention_days=30,
        received=0,
        blobs=(Blob(f"blob-{offset}", b"", offset),) if blob else (),
        clickhouse=(Row("replays", f"row-{offset}", b"{}", offset),),
        bigquery=(),
        metrics=(Metric(MetricKind.COUNTER, "segments", 1.0),),
        warnings=(),
        size_bytes=100,
    )


def partition(number: int, parsed: tuple[tuple[int, Outcome], ...], end: int) -> Partition:
    """One partition of the model, and its log for the oracle."""
    messages = []
    for index, (offset, outcome) in enumerate(parsed):
        blob = isinstance(outcome, Segment) and bool(outcome.blobs)
        messages.append(oracle.Message(offset, (1 << 2 * index) * blob, 2 << 2 * index))
    return Partition(TopicPartition("t", number), oracle.Log(tuple(messages), end), parsed)


OUTCOMES: tuple[tuple[tuple[int, Outcome], ...], ...] = (
    ((0, segment(0, blob=True)), (1, Reject("not_json", "", 1, b"?")), (2, segment(2, blob=True))),
    ((0, segment(0, blob=False)), (2, segment(2, blob=True))),
)
# Transactions leave offsets without a message: one at the end of each log, and one within the second.
PADDING = 1


def partitions(messages: Sequence[int]) -> tuple[Partition, ...]:
    """One partition per number; the number is its count of messages."""
    logs = [outcomes[:count] for outcomes, count in zip(OUTCOMES, messages, strict=False)]
    return tuple(partition(number, log, log[-1][0] + 1 + PADDING) for number, log in enumerate(logs))


class Move(NamedTuple):
    """One computed step of one reader: its event, and the reader and the board after it."""

    what: int
    fault: bool
    reader: int
    board: int


class CoreModel:
    """For `tools.explore.search`. `messages`: of each partition; `faults`: maximum per run, at most 3.

    A reader that has lost its partitions without knowing it runs alone until it learns of it. This misses no
    violation: its commits are refused, and the others see only the items that its chords make durable, which
    never violate an invariant. So the others can take their steps afterwards, with its chords still running, and
    it makes the same decisions. `every_order` explores the other orders too.

    A label is the number of the event, its reader (one bit), and whether the readers change places (one bit).
    """

    def __init__(
        self,
        messages: Sequence[int] = (2, 2),
        faults: int = 3,
        limits: Limits = LIMITS,
        *,
        every_order: bool = False,
    ) -> None:
        self.readers = Readers(partitions(messages), limits)
        self._faults = faults
        self._every_order = every_order
        self._reader: Numbers[Reader] = Numbers()
        self._board: Numbers[Board] = Numbers()
        self._what: Numbers[tuple[str, bool]] = Numbers()
        self._moves: dict[int, tuple[Move, ...]] = {}
        self._wiped: dict[int, int] = {}
        self._mirror: dict[int, int] = {}
        self._done: dict[int, bool] = {}
        self._broken: list[str] = []
        self._wipe = self._what.of(("redis loses everything", True))
        fresh = self._reader.of(self.readers.fresh)
        board = self._board.of(tuple(Shared() for _ in self.readers.partitions))
        self.start = self._canonical(fresh, fresh, board, 0)[0]

    @property
    def figures(self) -> str:
        """Figures of the search, as text."""
        cores = self.readers.cores
        return (
            f"{len(cores)} states of a pipeline, {cores.decisions} decisions of the real one, "
            f"{len(self._reader.things)} states of a reader, {len(self._board.things)} of the partitions"
        )

    # States

    def _canonical(self, one: int, other: int, board: int, faults: int) -> tuple[int, bool]:
        """The number of a state, and whether its readers changed places for that."""
        state = ((one << WIDTH | other) << WIDTH | board) << 2 | faults
        if one < other:
            return state, False
        mirror = ((other << WIDTH | one) << WIDTH | self._mirrored(board)) << 2 | faults
        return (mirror, True) if mirror < state else (state, False)

    def _mirrored(self, board: int) -> int:
        known = self._mirror.get(board)
        if known is None:
            shared = self._board.things[board]
            turned = tuple(one if one.owner == NOBODY else one._replace(owner=1 - one.owner) for one in shared)
            known = self._mirror[board] = self._board.of(turned)
        return known

    def _parts(self, state: int) -> tuple[int, int, int, int]:
        return state >> 2 + 2 * WIDTH, state >> 2 + WIDTH & MASK, state >> 2 & MASK, state & 3

    def is_done(self, state: int) -> bool:
        """Whether every message is durable and committed."""
        board = state >> 2 & MASK
        known = self._done.get(board)
        if known is None:
            logs = [one.log for one in self.readers.partitions]
            pairs = zip(logs, self._board.things[board], strict=True)
            known = all(log.needed(0, log.end) == one.durable and one.offset == log.end for log, one in pairs)
            self._done[board] = known
        return known

    # Steps

    def steps(self, state: int) -> Iterator[tuple[int, int]]:
        """All possible next events of either reader, and of Redis."""
        one, other, board, faults = self._parts(state)
        may_fail = faults < self._faults
        mirror = self._mirrored(board)
        alone, other_alone = self._is_cut_off(one, board), self._is_cut_off(other, mirror)
        for move in () if other_alone and not alone else self._moves_of(one, board, may_fail):
            if move.board < 0:
                yield move.what << 2, move.board
                continue
            after, mirrored = self._canonical(move.reader, other, move.board, faults + move.fault)
            yield move.what << 2 | mirrored, after
        for move in () if alone else self._moves_of(other, mirror, may_fail):
            if move.board < 0:
                yield move.what << 2 | 2, move.board
                continue
            after, mirrored = self._canonical(one, move.reader, self._mirrored(move.board), faults + move.fault)
            yield move.what << 2 | 2 | mirrored, after
        if may_fail:
            wiped = self._wiped_of(one), self._wiped_of(other)
            if wiped != (one, other):
                after, mirrored = self._canonical(*wiped, board, faults + 1)
                yield self._wipe << 2 | mirrored, after

    def _is_cut_off(self, reader: int, board: int) -> bool:
        """Whether this reader has lost its partitions without knowing it: it runs alone."""
        if self._every_order:
            return False
        entries = self._reader.things[reader].entries
        owners = self._board.things[board]
        return any(entry is not None and one.owner != ME for entry, one in zip(entries, owners, strict=True))

    def _wiped_of(self, reader: int) -> int:
        known = self._wiped.get(reader)
        if known is None:
            known = self._wiped[reader] = self._reader.of(self.readers.wiped(self._reader.things[reader]))
        return known

    def _moves_of(self, reader: int, board: int, may_fail: bool) -> tuple[Move, ...]:
        key = (reader << WIDTH | board) << 1 | may_fail
        moves = self._moves.get(key)
        if moves is None:
            moves = self._moves[key] = tuple(self._work_out(reader, board, may_fail))
        return moves

    def _work_out(self, reader: int, board: int, may_fail: bool) -> Iterator[Move]:
        things = self._reader.things[reader], self._board.things[board]
        for outcome in self.readers.outcomes(*things, may_fail=may_fail):
            became, after = self._reader.of(outcome.reader), self._board.of(outcome.board)
            if outcome.broken:
                self._broken.append(outcome.broken)
                after = -len(self._broken)
            elif (became, after) == (reader, board):
                continue
            yield Move(self._what.of((outcome.what, outcome.fault)), outcome.fault, became, after)

    def is_fault(self, label: int) -> bool:
        """Whether the label belongs to a fault."""
        return self._what.things[label >> 2][1]

    def broken(self, state: int) -> str:
        """The violated invariant."""
        return self._broken[-state - 1]

    # Counterexamples

    def tell(self, labels: list[int]) -> list[str]:
        """One line per step, with the reader's commands. Readers keep their names in mirrored states."""
        state, names, lines = self.start, ["A", "B"], []
        for label in labels:
            (what, fault), actor = self._what.things[label >> 2], label >> 1 & 1
            who = "" if label >> 2 == self._wipe else f"reader {names[actor]} "
            lines.append(f"{'fault: ' if fault else '':7}{who}{what}")
            lines += [f"{'':11}-> {order}" for order in self._orders(state, actor, what)]
            state = next(after for one, after in self.steps(state) if one == label)
            if label & 1:
                names.reverse()
        return lines

    def _orders(self, state: int, actor: int, what: str) -> list[str]:
        one, other, board, _ = self._parts(state)
        reader = self._reader.things[(one, other)[actor]]
        seen = self._board.things[self._mirrored(board) if actor else board]
        for outcome in self.readers.outcomes(reader, seen, may_fail=True):
            if outcome.what == what:
                return [said for command in outcome.commands if (said := as_text(command))]
        return []


def as_text(command: do.Command) -> str:
    """A command in a few words; empty for commands without effect in the model."""
    match command:
        case do.Commit():
            ends = oracle.ends_in(command.offset, command.record)
            return f"commit {command.offset} on p{command.source.partition}, ends above it: {ends or 'none'}"
        case do.Dispatch():
            batch = command.batch
            return (
                f"start {command.stage} of {batch.offsets} of p{batch.source.partition}, attempt {command.attempt}"
            )
        case do.Discard():
            return f"settled: {command.batch.offsets} of p{command.batch.source.partition}"
        case do.Release() | do.Pause() | do.Resume():
            sources = ", ".join(f"p{source.partition}" for source in command.sources)
            return f"{type(command).__name__.lower()} {sources or 'nothing'}"
        case do.Stop():
            return f"stop, {'clean' if command.clean else 'out of time'}"
    return ""
