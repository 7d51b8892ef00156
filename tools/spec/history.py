"""Converts the logged steps of readers to actions of the specification, by partition.

Readers can observe only some actions of the specification. The other actions are added here, as late as possible:
the group reassigns a partition, or a worker writes and marks the items that a completion reports. The search
determines when the broker stored a commit. Offsets become ranks, because only their order matters.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ingest.observe.steps import Step

READERS_MAX = 6
SLOTS = 4  # maximum number of commits of one reader that have an unknown result at the same time
STAGES = {"blobs": 2, "rows": 1}
# Reasons for a cut that allow a batch to end inside a range recorded by a former owner.
PARTS = frozenset({"bytes", "drain", "planned"})
END_OF_LOG = 1 << 62

ACTIONS = (
    "begin", "begin_end", "assign", "revoke", "release", "cut_off", "crash", "expel", "lose", "cut", "cut_short",
    "give_plan_up", "pass", "split", "send", "strip", "acknowledge", "refuse", "overtake", "fenced", "dispatch",
    "go_unrecorded", "flush", "abandon", "park", "expire", "settled", "names_end", "names_ends", "reads_end",
    "reads_ends",
)  # fmt: skip
"""Actions, in the order of their numbers in spec/replay.pml."""


class UnreadableHistory(Exception):
    """Raised if the steps do not form a complete run and therefore cannot be converted to actions."""


class Action(NamedTuple):
    """One action for spec/replay.pml. `line`: the logged step, for the output."""

    name: str
    reader: int
    numbers: tuple[int, ...]
    line: str


@dataclass(slots=True)
class _SentCommit:
    """One commit of a reader. `seen`: a response, or a read by the next owner, shows that the commit was stored.
    `bare`: the commit was stored without its batch ends.
    """

    offset: int
    ends: tuple[int, ...]
    at: int
    reader: str
    seen: bool = False
    answered_at: int = -1
    bare: bool = False
    slot: int = -1


@dataclass(slots=True)
class _Life:
    """One reader process while it holds the partition."""

    number: int
    assigned_at: int
    until: int
    taken: int
    plan: list[int]
    nothing: list[tuple[int, int]] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    cut: dict[int, bool] = field(default_factory=dict)  # end offset of a batch -> True while its chord is running
    waits: _SentCommit | None = None

    def holds(self, at: int) -> bool:
        """Returns True if the assignment was current at the given time."""
        return self.assigned_at < at < self.until

    def planned(self) -> int | None:
        """Returns the next batch end that the former owner recorded; None if there is none."""
        return next((end for end in self.plan if end > self.taken), None)

    def is_empty(self, start: int, stop: int) -> bool:
        """Returns True if every offset of the range is known to have no items."""
        for low, high in sorted(self.nothing):
            if low <= start < high:
                start = high
        return start >= stop


def partitions(steps: Iterable[Step]) -> dict[int, list[Step]]:
    """Returns the steps of each partition, in the order of the run."""
    found: dict[int, list[Step]] = {}
    for step in steps:
        found.setdefault(int(step["partition"]), []).append(step)
    return found


def histories(steps: Sequence[Step]) -> Iterator[list[Step]]:
    """Yields the steps of one partition, split wherever the group has no committed offset.

    After such a point, readers that were assigned the partition before it can neither commit offsets nor hand the
    partition over.
    """
    part: list[Step] = []
    assigned: set[str] = set()
    for step in _without_late_assignments(steps):
        reader, is_start = str(step["reader"]), step["step"] == "assigned"
        if is_start and step["new"] and any(one["step"] in ("commit", "cut") for one in part):
            yield part
            part, assigned = [], set()
        if is_start:
            assigned.add(reader)
        if reader in assigned:
            part.append(step)
    if part:
        yield part


def _without_late_assignments(steps: Sequence[Step]) -> list[Step]:
    """Leaves out assignments that the group had already revoked when their reader handled them, for example
    because the reader was suspended. Before it detected the loss of the partition, such a reader did nothing but
    send commits, none of which is known to have been stored.

    Otherwise the steps of the actual owner would look like those of a former owner. If such a commit was stored
    after all, the history is refused, because the next owner reads a record that no reader in the history wrote.
    """
    kept = list(steps)
    for at, step in enumerate(steps):
        if step["step"] != "assigned":
            continue
        own = [later for later in range(at, len(steps)) if steps[later]["reader"] == step["reader"]]
        end = next((n for n, later in enumerate(own[1:], 1) if steps[later]["step"] != "commit"), None)
        if end is not None and steps[own[end]]["step"] == "lost":
            for later in own[: end + 1]:
                kept[later] = {}
    return [step for step in kept if step]


class History:
    """The actions of one partition, built once from the steps in the order in which they occurred."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.actions: list[Action] = []
        self._steps = steps
        self._lives: dict[str, _Life] = {}
        self._in_use: dict[int, str] = {}
        self._owner: str | None = None
        self._line = ""
        self._last = {str(step["reader"]): at for at, step in enumerate(steps)}
        self._sent = self._commits()
        for at, step in enumerate(steps):
            self._line = _shown(step)
            self._take(at, step)

    @property
    def ranks(self) -> list[int]:
        """Returns the offsets in the actions, in ascending order. An offset's rank is its index in this list."""
        named = {number for action in self.actions for number in _offsets(action)}
        return sorted(named - {END_OF_LOG})

    def lines(self, stop: int) -> list[str]:
        """Returns the lines for spec/replay.pml: the number of an action, and its four arguments.

        `stop`: the value of STOP in the specification.
        """
        ranks = self.ranks
        found = []
        for action in self.actions:
            numbers = [*action.numbers]
            for place in OFFSETS[action.name]:
                offset = numbers[place]
                numbers[place] = stop if offset == END_OF_LOG else bisect_left(ranks, offset)
            padded = [*numbers, 0, 0, 0][:3]
            found.append(" ".join(map(str, (ACTIONS.index(action.name), action.reader, *padded))))
        return found

    # Result of each commit

    def _commits(self) -> dict[int, _SentCommit]:
        """Returns commits by the index of their step.

        A response is assigned to the reader's newest commit that has the same content and no response yet. A
        reader that sent the same commit twice cannot tell the responses apart, and takes the first one as the
        response to the commit for which it is waiting.
        """
        sent: dict[int, _SentCommit] = {}
        of_life: dict[str, list[_SentCommit]] = {}
        since: list[_SentCommit] = []
        for at, step in enumerate(self._steps):
            life, name = str(step["reader"]), step["step"]
            if name == "commit":
                commit = sent[at] = _SentCommit(step["offset"], tuple(step["ends"]), at, life)
                of_life.setdefault(life, []).append(commit)
                since.append(commit)
            elif name in ("committed", "refused"):
                stored = (step["offset"], tuple(step["ends"]))
                equal = [commit for commit in of_life.get(life, ()) if (commit.offset, commit.ends) == stored]
                pending = [commit for commit in equal if commit.answered_at < 0]
                if pending:
                    pending[-1].seen, pending[-1].answered_at = name == "committed", at
            elif name == "assigned":
                _mark_commit_read_by_next_owner(since, step)
                of_life[life], since = [], []
        return sent

    # Step by step

    def _add(self, name: str, life: _Life | None = None, *numbers: int) -> None:
        self.actions.append(Action(name, life.number if life else 0, numbers, self._line))

    def _take(self, at: int, step: Step) -> None:
        name, reader = str(step["step"]), str(step["reader"])
        if name == "assigned":
            self._assigned(at, reader, step)
            return
        life = self._lives.get(reader)
        if life is None:
            if name in ("committed", "refused", "stopped"):
                return  # the response to a commit of an ended assignment
            raise UnreadableHistory(f"no assignment of the partition before {self._line}")
        getattr(self, f"_on_{name}")(life, step, at)
        if name in ("released", "lost", "stopped"):
            self._remove(reader)

    def _remove(self, reader: str) -> None:
        self._lives.pop(reader, None)
        if self._owner == reader:
            self._owner = None

    def _assigned(self, at: int, reader: str, step: Step) -> None:
        offset, ends = int(step["offset"]), [*step["ends"]]
        if not self.actions:
            self._add("begin", None, offset)
            for end in ends:
                self._add("begin_end", None, end)
        if self._owner is not None:
            self._leave(self._owner, at)
        for other in [name for name in self._lives if self._last[name] < at]:
            self._add("crash", self._lives[other])
            self._remove(other)
        self._in_use = {life.number: name for name, life in self._lives.items()}
        number = next((n for n in range(READERS_MAX) if n not in self._in_use), None)
        if number is None or reader in self._lives:
            raise UnreadableHistory(
                f"more than {READERS_MAX} readers hold the partition, or one twice, at {self._line}"
            )
        later = [n for n, one in enumerate(self._steps) if n > at and one["reader"] == reader]
        until = next((n for n in later if self._steps[n]["step"] == "assigned"), len(self._steps))
        life = self._lives[reader] = _Life(number, at, until, offset, ends)
        self._owner = reader
        self._add("assign", life, offset)
        for end in ends:
            self._add("reads_end", life, end)
        self._add("reads_ends", life, len(ends))

    def _leave(self, owner: str, at: int) -> None:
        """Adds the actions for a partition that the group assigned to another reader. The former owner is dead, or
        has not detected the loss yet.
        """
        dead = self._last[owner] < at
        self._add("crash" if dead else "expel", self._lives[owner])
        if dead:
            self._remove(owner)
        self._owner = None

    def _on_revoked(self, life: _Life, step: Step, at: int) -> None:
        self._add("revoke", life)

    def _on_released(self, life: _Life, step: Step, at: int) -> None:
        if life.waits is not None and step["gave_up"]:
            self._add("overtake", life)
        self._add("cut_off" if step["late"] else "release", life)

    def _on_stopped(self, life: _Life, step: Step, at: int) -> None:
        self._add("crash", life)

    def _on_lost(self, life: _Life, step: Step, at: int) -> None:
        if self._owner == str(step["reader"]):
            self._add("expel", life)
            self._owner = None
        self._add("lose", life)

    def _on_nothing(self, life: _Life, step: Step, at: int) -> None:
        life.nothing.append((step["start"], step["stop"]))

    def _on_ended(self, life: _Life, step: Step, at: int) -> None:
        life.ended.append(step["stop"])
        if step["stop"] > step["start"]:
            life.nothing.append((step["start"], step["stop"]))

    # Cut

    def _on_cut(self, life: _Life, step: Step, at: int) -> None:
        start, stop = step["start"], step["stop"]
        stages = max((STAGES[stage] for stage in step["stages"]), default=0)
        over = self._passed_before(life, str(step["reader"]), start)
        if over > life.taken:
            self._pass(life, over)
        planned = life.planned()
        if planned is not None and stop != planned and not self._is_part(step, planned):
            self._abandon_plan(life, planned)
            planned = life.planned()
        if not stages and not life.is_empty(start, stop):
            # The batch is logged as empty, but no step confirms this, so the search must refuse it.
            stages = STAGES["rows"]
        self._add("cut_short" if planned is not None and stop < planned else "cut", life, stop, stages)
        life.taken = stop
        if stages:
            life.cut[stop] = False
        if planned is not None and stop < planned and step["cut_by"] == "planned":
            self._pass(life, planned)

    def _passed_before(self, life: _Life, reader: str, start: int) -> int:
        """Returns the offset up to which the reader has skipped offsets before it cuts the batch that begins at
        `start`.

        Messages are read in order, so there are no messages in the gap between the previous batch and this batch.
        Usually, this batch covers the gap, so the reader has skipped nothing. But if the gap contains batch ends
        that the former owner recorded, or offsets that the reader committed, the reader has skipped all offsets up
        to the highest of these.
        """
        ends = [end for end in life.plan if life.taken < end <= start]
        sent = [
            commit.offset for commit in self._sent.values() if commit.reader == reader and life.holds(commit.at)
        ]
        return max([*ends, *(offset for offset in sent if life.taken < offset <= start)], default=life.taken)

    @staticmethod
    def _is_part(step: Step, planned: int) -> bool:
        return bool(step["stop"] < planned and step["cut_by"] in PARTS)

    def _pass(self, life: _Life, to: int) -> None:
        self._add("pass", life, to)
        life.taken = to

    def _abandon_plan(self, life: _Life, planned: int) -> None:
        """Abandons the whole plan if fetching ended before the end of the planned range."""
        if life.plan and any(end < planned for end in life.ended):
            self._add("give_plan_up", life)
            life.plan = []

    def _on_split(self, life: _Life, step: Step, at: int) -> None:
        first, second = step["into"]
        stages = [max((STAGES[stage] for stage in part["stages"]), default=0) for part in (first, second)]
        self._add("split", life, step["stop"], first["stop"], 4 * stages[0] + stages[1])
        life.cut[first["stop"]] = life.cut[step["stop"]] = False

    # Commit

    def _on_commit(self, life: _Life, step: Step, at: int) -> None:
        offset, ends = step["offset"], step["ends"]
        if offset > life.taken and life.is_empty(life.taken, offset):
            self._pass(life, offset)
        missing = [end for end in life.plan if end > max(life.taken, offset) and end not in ends]
        for end in missing if not step["short"] else ():
            if life.is_empty(life.taken, end):
                self._pass(life, end)
            else:
                self._abandon_plan(life, end)
        sent = self._sent[at]
        if life.waits is not None:
            self._add("overtake", life)
            life.waits = None
        slot = self._free_slot(life, str(step["reader"]), at)
        if slot is None:
            raise UnreadableHistory(f"more than {SLOTS} commits of one reader are pending at {self._line}")
        last = max(ends, default=0) if step["short"] else END_OF_LOG
        self._add("send", life, slot, offset, last)
        for end in ends:
            self._add("names_end", life, slot, end)
        self._add("names_ends", life, slot, len(ends))
        if not sent.seen or self._owner != str(step["reader"]):
            # No reader observed that this commit was stored. Either the commit was not stored, or it was sent too
            # late.
            self._add("refuse" if self._owner == str(step["reader"]) else "fenced", life, slot)
            return
        sent.slot, life.waits = slot, sent
        if sent.bare:
            self._add("strip", life, slot)

    def _free_slot(self, life: _Life, reader: str, at: int) -> int | None:
        own = [
            commit
            for commit in self._sent.values()
            if commit.reader == reader and life.assigned_at < commit.at < at
        ]
        used = {commit.slot for commit in own if commit.slot >= 0 and not 0 <= commit.answered_at < at}
        return next((slot for slot in range(SLOTS) if slot not in used), None)

    def _on_committed(self, life: _Life, step: Step, at: int) -> None:
        for sent in self._sent.values():
            if sent.answered_at == at and sent.slot >= 0:
                self._add("acknowledge", life, sent.slot)
                if life.waits is sent:
                    life.waits = None

    def _on_refused(self, life: _Life, step: Step, at: int) -> None:
        """Adds no action, because a refusal is handled together with its commit."""

    # Flush

    def _on_dispatch(self, life: _Life, step: Step, at: int) -> None:
        stop = step["stop"]
        if life.cut.get(stop) and step["late"]:
            self._add("expire", life, stop)
        if not life.cut.get(stop) and (step["late"] or step["short"]):
            self._add("go_unrecorded", life, stop)
        self._add("dispatch", life, stop)
        life.cut[stop] = True

    def _on_flushed(self, life: _Life, step: Step, at: int) -> None:
        self._add("flush", life, step["stop"], STAGES[step["stage"]])
        life.cut[step["stop"]] = False

    def _on_parked(self, life: _Life, step: Step, at: int) -> None:
        self._add("park", life, step["stop"])
        life.cut[step["stop"]] = False

    def _on_settled(self, life: _Life, step: Step, at: int) -> None:
        name = "abandon" if step["by"] == "operator" else "settled"
        self._add(name, life, step["stop"])
        life.cut.pop(step["stop"], None)


def _mark_commit_read_by_next_owner(since: Sequence[_SentCommit], assigned: Step) -> None:
    """Marks as stored the commit that the next owner read, even if its sender received no response."""
    offset, ends = assigned["offset"], tuple(assigned["ends"])
    exact = [commit for commit in since if (commit.offset, commit.ends) == (offset, ends)]
    bare = [commit for commit in since if commit.offset == offset] if not ends else []
    seen = [commit for commit in exact if commit.seen] or [commit for commit in exact if commit.answered_at < 0]
    if not seen and bare:
        seen = [commit for commit in bare if commit.seen] or [commit for commit in bare if commit.answered_at < 0]
        for commit in seen[-1:]:
            commit.bare = True
    if seen:
        seen[-1].seen = True


OFFSETS: dict[str, tuple[int, ...]] = dict.fromkeys(ACTIONS, ()) | {
    "begin": (0,), "begin_end": (0,), "assign": (0,), "cut": (0,), "cut_short": (0,), "pass": (0,),
    "split": (0, 1), "send": (1, 2), "dispatch": (0,), "go_unrecorded": (0,), "flush": (0,), "abandon": (0,),
    "park": (0,), "expire": (0,), "settled": (0,), "names_end": (1,), "reads_end": (0,),
}  # fmt: skip
"""Indexes of the arguments of an action that are offsets."""


def _offsets(action: Action) -> Iterator[int]:
    yield 0
    for place in OFFSETS[action.name]:
        yield action.numbers[place]


def _shown(step: Step) -> str:
    facts: dict[str, Any] = {name: value for name, value in step.items() if name not in ("step", "reader")}
    text = " ".join(f"{name}={value}" for name, value in facts.items())
    return f"{step['reader']} {step['step']} {text}"
