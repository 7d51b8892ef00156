"""The model of the core: two readers with the real `Pipeline`, one or two partitions, a few messages, and faults.

A state is three numbers: one for each reader, and one for the *board*, which is the state of all partitions
outside the readers. The events of a reader do not depend on the other reader, so they are computed once for each
pair of reader and board, and looked up for every state with that pair.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import NamedTuple

from ingest.core import commands as do
from ingest.core.limits import Limits, RejectPolicy
from ingest.core.model import Blob, Metric, MetricKind, Outcome, Reject, Row, Segment, TopicPartition
from tools.explore import oracle
from tools.explore.numbers import Numbers
from tools.explore.readers import ME, NO_OWNER, OTHER, Board, Partition, Reader, Readers, SharedState

LIMITS = Limits(
    batch_messages_max=2,
    batch_age_seconds_max=0.5,
    batch_age_idle_seconds=0.5,
    in_flight_batches_max=2,
    flush_deadline_seconds=1.0,
    drain_deadline_seconds=1.0,
    retry_backoff_seconds=0.5,
    retry_backoff_seconds_max=0.5,
    parked_probe_seconds=1e9,
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
    reject_policy=RejectPolicy.DROP,
)
WIDTH = 24
MASK = (1 << WIDTH) - 1
# Stands for the second reader in states that contain only one reader.
SINGLE = MASK
PARTITION_NAME = re.compile(r"\bp([01])\b")


def segment(offset: int, *, blob: bool) -> Segment:
    """Returns the smallest segment that has rows, and optionally a blob."""
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
    """Returns one partition of the model, and its log for the oracle."""
    messages = []
    for index, (offset, outcome) in enumerate(parsed):
        blob = isinstance(outcome, Segment) and bool(outcome.blobs)
        messages.append(oracle.Message(offset, (1 << 2 * index) * blob, 2 << 2 * index))
    return Partition(TopicPartition("t", number), oracle.Log(tuple(messages), end), parsed)


OUTCOMES: tuple[tuple[int, Outcome], ...] = (
    (0, segment(0, blob=True)),
    (1, Reject("not_json", "", 1, b"?", project_id=1)),
    (3, segment(3, blob=False)),
    (4, segment(4, blob=True)),
)
# Transactions leave offsets without a message: one such offset is within the log, and another is at its end.
PADDING = 1


def partitions(messages: Sequence[int]) -> tuple[Partition, ...]:
    """Returns partitions with the given numbers of messages."""
    logs = [OUTCOMES[:count] for count in messages]
    return tuple(partition(number, log, log[-1][0] + 1 + PADDING) for number, log in enumerate(logs))


class Move(NamedTuple):
    """One computed step of one reader: the number of its event, and the states of the reader and of the partitions
    (`board`) after the step.
    """

    what: int
    fault: bool
    reader: int
    board: int
    cut_off: bool


class CoreModel:
    """A model for `tools.explore.search`. `messages`: number per partition; `faults`: maximum per run; `expiry`:
    messages may expire.

    A state consists of both readers and the board. If the readers can no longer affect each other, a *single*
    reader is explored: the state then consists of this reader and its partitions. There are two cases:

    - A reader has lost its partitions and has not detected the loss. The reader's commits are refused, and its
      chords only make items durable, which cannot violate an invariant. Once the reader detects the loss, or after
      a crash, it is equivalent to a fresh reader.
    - No further fault is allowed, every partition has an owner, and no partition is being released. Each
      reader is then explored alone.

    If two states differ only because the two readers, or two partitions with equal logs, are swapped, the states
    are equivalent, and only one of them is explored. `every_order` explores both readers of each state together,
    to verify that exploring a single reader misses nothing.

    A label contains the number of the event and three bits: which reader performs the event, whether the readers
    are swapped in the next state, and whether the partitions are swapped in the next state.
    """

    def __init__(
        self,
        messages: Sequence[int] = (2, 2),
        faults: int = 3,
        limits: Limits = LIMITS,
        *,
        expiry: bool = False,
        every_order: bool = False,
    ) -> None:
        self.readers = Readers(partitions(messages), limits, faults, expiry=expiry)
        self._every_order = every_order
        self._may_exchange_partitions = len(messages) == 2 and len(set(messages)) == 1
        self._reader: Numbers[Reader] = Numbers()
        self._board: Numbers[Board] = Numbers()
        self._what: Numbers[tuple[str, bool]] = Numbers()
        self._moves: dict[int, tuple[Move, ...]] = {}
        self._known: dict[tuple[str, int], int] = {}
        self._part: Numbers[Hashable] = Numbers()
        self._orders_known: dict[int, bool] = {}
        self._broken: list[str] = []
        self._wipe = self._what.of(("redis loses everything", True))
        self._fresh = self._reader.of(self.readers.fresh)
        unowned = tuple(SharedState() for _ in self.readers.partitions)
        self.start = self._canonical(self._fresh, self._fresh, self._board.of(unowned))[0]

    @property
    def figures(self) -> str:
        """Returns the numbers of states and decisions in the search, as text."""
        cores = self.readers.cores
        return (
            f"{len(cores)} states of a pipeline, {cores.decisions} decisions of the real one, "
            f"{len(self._reader.values)} states of a reader, {len(self._board.values)} of the partitions"
        )

    # States

    def _canonical(self, one: int, other: int, board: int) -> tuple[int, int]:
        """Returns the representative of all equivalent states, packed into one number, and a bit mask: 2 if the
        readers were swapped to obtain this representative, 1 if the partitions were swapped.
        """
        turn = self._may_exchange_partitions and self._order(one, other, board)
        if turn:
            one, other, board = self._swapped(one), self._swapped(other), self._swapped_board(board)
        state, mirror = min((pack(one, other, board), 0), (pack(other, one, self._mirrored(board)), 2))
        return state, mirror | turn

    def _single(self, reader: int, board: int) -> tuple[int, int]:
        """Returns a pair: the state with only this reader, packed into one number, and 1 if the partitions were
        swapped to obtain this state, otherwise 0.
        """
        board = self._own_board(reader, board)
        if self._may_exchange_partitions and self._order(reader, self._fresh, board):
            return pack(self._swapped(reader), SINGLE, self._swapped_board(board)), 1
        return pack(reader, SINGLE, board), 0

    def _order(self, one: int, other: int, board: int) -> bool:
        """Returns True if the partitions must be swapped so that the lower state comes first. The state of a
        partition includes its state in both readers and on the board.

        The order in which a reader was assigned its partitions is not compared.
        """
        key = (one << WIDTH | other) << WIDTH | board
        known = self._orders_known.get(key)
        if known is None:
            first, second = (self._partition_state(one, other, board, number) for number in (0, 1))
            known = self._orders_known[key] = first > second
        return known

    def _partition_state(self, one: int, other: int, board: int, number: int) -> list[int]:
        """Returns the state of one partition as numbers, independent of the order of the readers."""
        shared = self._board.values[board][number]
        parts = []
        for reader, owner in ((one, ME), (other, OTHER)):
            state = self._reader.values[reader]
            chords = tuple(chord[1:] for chord in state.chords if chord.partition == number)
            unrecorded = tuple(end for at, end in state.unrecorded if at == number)
            owns = shared.owner == owner
            known = self.readers.cores.features(state.core, self.readers.partitions[number].source)
            parts.append(
                self._part.of((state.entries[number], state.commits[number], chords, unrecorded, known, owns))
            )
        return [*sorted(parts), self._part.of(shared._replace(owner=NO_OWNER))]

    def _cached(self, kind: str, key: int, compute: Callable[[], int]) -> int:
        known = self._known.get((kind, key))
        if known is None:
            known = self._known[kind, key] = compute()
        return known

    def _mirrored(self, board: int) -> int:
        """Returns the board, with each partition's owner from the other reader's point of view."""
        return self._cached("mirrored", board, lambda: self._board.of(exchange_owners(self._board.values[board])))

    def _swapped(self, reader: int) -> int:
        """Returns the reader with the partitions swapped."""
        return self._cached(
            "turned", reader, lambda: self._reader.of(self.readers.exchanged(self._reader.values[reader]))
        )

    def _swapped_board(self, board: int) -> int:
        return self._cached("board", board, lambda: self._board.of(self._board.values[board][::-1]))

    def _own_board(self, reader: int, board: int) -> int:
        """Returns the board with only the partitions of this reader; all others are treated as done."""

        def own() -> int:
            values = zip(
                self._reader.values[reader].entries,
                self._board.values[board],
                self.readers.partitions,
                strict=True,
            )
            return self._board.of(
                tuple(
                    shared
                    if shared.owner == ME
                    else SharedState(
                        OTHER, one.log.end, "", shared.durable if entry else one.log.needed(0, one.log.end)
                    )
                    for entry, shared, one in values
                )
            )

        return self._cached("own", reader << WIDTH | board, own)

    def _parts(self, state: int) -> tuple[int, int, int]:
        return state >> 2 * WIDTH, state >> WIDTH & MASK, state & MASK

    def is_done(self, state: int) -> bool:
        """Returns True if every message is durable and committed."""

        def done() -> int:
            pairs = zip(self.readers.partitions, self._board.values[board], strict=True)
            return all(
                one.log.needed(0, one.log.end) == shared.durable and shared.offset == one.log.end
                for one, shared in pairs
            )

        _, other, board = self._parts(state)
        if other == SINGLE and self._is_cut_off(*self._parts(state)[::2]):
            return True
        return bool(self._cached("done", board, done))

    # Steps

    def steps(self, state: int, faults_left: int) -> Iterator[tuple[int, int]]:
        """Yields all possible next events of either reader, and of Redis."""
        one, other, board = self._parts(state)
        may_fail = faults_left > 0
        if other == SINGLE:
            yield from self._steps_of_single_reader(one, board, may_fail=may_fail)
            return
        mirror = self._mirrored(board)
        for move in self._moves_of(one, board, may_fail=may_fail):
            label = move.what << 3
            if move.board < 0:
                yield label, move.board
                continue
            last = faults_left == move.fault
            yield from self._arrive(label, move.reader, other, move.board, last=last, cut_off=move.cut_off)
        for move in self._moves_of(other, mirror, may_fail=may_fail):
            label = move.what << 3 | 4
            if move.board < 0:
                yield label, move.board
                continue
            last, after = faults_left == move.fault, move.board
            if move.cut_off and not self._every_order:
                alone, turned = self._single(move.reader, after)
                yield label | 2 | turned, alone
            else:
                yield from self._arrive(label, one, move.reader, self._mirrored(after), last=last, cut_off=False)
        if may_fail:
            wiped = self._wiped_reader(one), self._wiped_reader(other)
            if wiped != (one, other):
                yield from self._arrive(self._wipe << 3, *wiped, board, last=faults_left == 1, cut_off=False)

    def _arrive(
        self, label: int, one: int, other: int, board: int, *, last: bool, cut_off: bool
    ) -> Iterator[tuple[int, int]]:
        """Yields (label, next state) for a step after which the readers have the states `one` and `other` and the
        board has the state `board`; all three are state numbers. `last`: no further fault is allowed.
        """
        if self._every_order or not (cut_off or (last and self._is_settled(one, other, board))):
            state, turned = self._canonical(one, other, board)
            yield label | turned, state
            return
        state, turned = self._single(one, board)
        yield label | turned, state
        if not cut_off:
            state, turned = self._single(other, self._mirrored(board))
            yield label | 2 | turned, state

    def _is_settled(self, one: int, other: int, board: int) -> bool:
        """Returns True if every partition has an owner that keeps it unless there is a further fault."""
        if any(shared.owner == NO_OWNER for shared in self._board.values[board]):
            return False
        return self._keeps_partitions(one) and self._keeps_partitions(other)

    def _keeps_partitions(self, reader: int) -> bool:
        def keeps() -> int:
            state = self._reader.values[reader]
            draining = any(entry is not None and entry.draining for entry in state.entries)
            return not (state.stopping or draining)

        return bool(self._cached("keeps", reader, keeps))

    def _steps_of_single_reader(self, reader: int, board: int, *, may_fail: bool) -> Iterator[tuple[int, int]]:
        cut_off = self._is_cut_off(reader, board)
        for move in self._moves_of(reader, board, may_fail=may_fail):
            label = move.what << 3
            if move.board < 0:
                yield label, move.board
            elif cut_off and move.reader != self._fresh and not self._is_cut_off(move.reader, move.board):
                # The reader has detected the loss but still differs from a fresh reader. The next state contains
                # both this reader and a fresh reader.
                free = tuple(SharedState() for _ in self.readers.partitions)
                state, turned = self._canonical(move.reader, self._fresh, self._board.of(free))
                yield label | turned, state
            else:
                state, turned = self._single(move.reader, move.board)
                yield label | turned, state
        wiped = self._wiped_reader(reader)
        if may_fail and wiped != reader:
            state, turned = self._single(wiped, board)
            yield self._wipe << 3 | turned, state

    def _is_cut_off(self, reader: int, board: int) -> bool:
        """Returns True if this reader has lost its partitions but has not detected the loss."""
        entries = self._reader.values[reader].entries
        owners = self._board.values[board]
        return any(entry is not None and one.owner != ME for entry, one in zip(entries, owners, strict=True))

    def _wiped_reader(self, reader: int) -> int:
        return self._cached(
            "wiped", reader, lambda: self._reader.of(self.readers.wiped(self._reader.values[reader]))
        )

    def _moves_of(self, reader: int, board: int, *, may_fail: bool) -> tuple[Move, ...]:
        key = (reader << WIDTH | board) << 1 | may_fail
        moves = self._moves.get(key)
        if moves is None:
            moves = self._moves[key] = tuple(self._compute_moves(reader, board, may_fail=may_fail))
        return moves

    def _compute_moves(self, reader: int, board: int, *, may_fail: bool) -> Iterator[Move]:
        values = self._reader.values[reader], self._board.values[board]
        for outcome in self.readers.outcomes(*values, may_fail=may_fail):
            became, after = self._reader.of(outcome.reader), self._board.of(outcome.board)
            if outcome.broken:
                self._broken.append(outcome.broken)
                after = -len(self._broken)
            elif (became, after) == (reader, board):
                continue
            what = self._what.of((outcome.what, outcome.fault))
            yield Move(what, outcome.fault, became, after, outcome.cut_off)

    def is_fault(self, label: int) -> bool:
        """Returns True if the label belongs to a fault."""
        return self._what.values[label >> 3][1]

    def broken(self, state: int) -> str:
        """Returns the violated invariant."""
        return self._broken[-state - 1]

    # Counterexamples

    def describe(self, path: list[tuple[int, int]]) -> list[str]:
        """Returns one line per step, with the reader's commands. Each reader and partition has the same name in
        all lines, even if the search swapped the readers or partitions between two states.
        """
        names, exchanged, lines = ["A", "B"], False, []
        for state, label in path:
            (what, fault), actor = self._what.values[label >> 3], label >> 2 & 1
            who = "" if label >> 3 == self._wipe else f"reader {names[actor]} "
            step = [f"{'fault: ' if fault else '':7}{who}{what}"]
            step += [f"{'':11}-> {command}" for command in self._commands(state, actor, what)]
            lines += [PARTITION_NAME.sub(other_name, line) if exchanged else line for line in step]
            if label & 2:
                names.reverse()
            exchanged ^= bool(label & 1)
        return lines

    def _commands(self, state: int, actor: int, what: str) -> list[str]:
        one, other, board = self._parts(state)
        reader = self._reader.values[(one, other)[actor]]
        seen = self._board.values[self._mirrored(board) if actor else board]
        for outcome in self.readers.outcomes(reader, seen, may_fail=True):
            if outcome.what == what:
                return [text for command in outcome.commands if (text := as_text(command))]
        return []


def pack(one: int, other: int, board: int) -> int:
    """Returns a state as a number."""
    return (one << WIDTH | other) << WIDTH | board


def exchange_owners(board: Board) -> Board:
    """Returns the board, with each partition's owner from the other reader's point of view."""
    return tuple(
        partition if partition.owner == NO_OWNER else partition._replace(owner=1 - partition.owner)
        for partition in board
    )


def other_name(found: re.Match[str]) -> str:
    """Returns `p1` for `p0`, and `p0` for `p1`."""
    return f"p{1 - int(found[1])}"


def as_text(command: do.Command) -> str:
    """Returns a short description of a command, which is empty for commands without an effect in the model."""
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
            return f"stop, {'drained' if command.clean else 'at the drain deadline'}"
    return ""
