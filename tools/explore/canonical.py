"""Represents a pipeline as a comparable value with everything that affects its decisions, but without absolute
times.

Times become ticks relative to now. An age is capped at the highest value that affects a decision, and a deadline
that has passed becomes 0. Attributes that no decision reads are left out (`OMITTED_ATTRIBUTES`). All attributes of
the core's objects are visited: a new attribute becomes part of the value automatically, and a new float attribute
stops the explorer until the attribute is added to `AGES`, `DEADLINES` or `DURATIONS`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable
from enum import Enum, auto
from typing import Any

import msgspec

from ingest.core.batching import Builder
from ingest.core.flight import Flight, Phase
from ingest.core.model import Batch, CutReason
from ingest.core.partition import Partition
from ingest.core.pipeline import DEADLINE_MISSES_MAX, Pipeline
from tools.explore.frozen import PipelinePacker

TICK_SECONDS = 0.5
INTERVAL_TICKS = 1
ANSWER_TICKS = 2

# Attributes that hold the time of a past event. The number is the highest age that is distinguished, in ticks.
AGES = {
    "_started_at": INTERVAL_TICKS,
    "_full_since": INTERVAL_TICKS,
    "_refused_at": INTERVAL_TICKS,
    "_cut_early_at": INTERVAL_TICKS,
    "_sent_at": ANSWER_TICKS,
}
# Attributes that hold the time of a future event.
DEADLINES = frozenset({"until", "release_by", "stopping_by"})
DURATIONS = frozenset({"_waited_seconds"})
# Constants, values that are shown to operators, and counts of rejects. With the limits that the model sets, no
# decision depends on these attributes.
OMITTED_ATTRIBUTES = frozenset(
    {
        *("limits", "_limits", "_handlers", "rejects", "since", "error", "shown", "shown_at", "_renewed_at"),
        *("failures", "own_failures", "_acknowledged", "_source", "_ticked_at", "_cut_early_at", "_probes"),
    }
)
# `readers.Chord` records whether a chord belongs to the current attempt. Otherwise, decisions depend only on
# whether there has been an attempt. A batch is parked after DEADLINE_MISSES_MAX consecutive missed deadlines, each
# of which requires a fault in the model.
CAPS = {"attempt": 1, "misses": DEADLINE_MISSES_MAX}
# The reason for a cut affects decisions in only one way: it shows whether the batch is a part of another batch.
BATCH = ("source", "epoch", "offsets", "segments", "rejects", "size_bytes")
# Objects that all partitions share. They are compared as part of the value of the pipeline.
SHARED_FIELDS = frozenset({"_ledger", "_budget"})


class Role(Enum):
    """The way in which an attribute is compared."""

    PLAIN = auto()
    AGE = auto()
    DEADLINE = auto()
    DURATION = auto()
    CAPPED = auto()


def role_of(name: str) -> Role:
    """Returns the role of the attributes with this name. The name is sufficient, because it has the same meaning
    throughout the core.
    """
    roles = {Role.AGE: AGES, Role.DEADLINE: DEADLINES, Role.DURATION: DURATIONS, Role.CAPPED: CAPS}
    return next((role for role, names in roles.items() if name in names), Role.PLAIN)


def role_value(role: Role, name: str, value: float, now: float) -> float:
    """Returns the comparable value of an attribute, with times as ticks from now."""
    match role:
        case Role.AGE:
            return min(AGES[name], round((now - value) / TICK_SECONDS))
        case Role.DEADLINE:
            return max(0, math.ceil((value - now) / TICK_SECONDS - 1e-9))
        case Role.CAPPED:
            return min(CAPS[name], value)
        case _:
            return value


class Canonicalizer:
    """Converts pipelines to comparable values, and copies pipelines. Equal parts get equal numbers, so that values
    are small and fast to compare.
    """

    def __init__(self, *, count_misses: bool = True) -> None:
        self._left_out = OMITTED_ATTRIBUTES if count_misses else OMITTED_ATTRIBUTES | {"misses"}
        self._numbers: dict[Hashable, int] = {}
        self._plans: dict[tuple[type, int], tuple[tuple[str, Role], ...]] = {}
        self._atomic: dict[type, bool] = {}
        self._frozen = PipelinePacker(self._is_atom)

    def value(self, pipeline: Pipeline, now: float) -> int:
        """Returns a number that is equal for all pipelines that make the same decisions on the same events after
        the same delays.
        """
        value: int = self._part(pipeline, now)
        return value

    def _number(self, part: Hashable) -> int:
        return self._numbers.setdefault(part, len(self._numbers))

    def _part(self, obj: Any, now: float) -> Any:
        kind = type(obj)
        if kind is Batch:
            by_bytes = obj.cut_by is CutReason.BYTES
            return self._number(("Batch", *(getattr(obj, name) for name in BATCH), by_bytes))
        if self._is_atom(kind):
            return obj
        if kind in (list, deque, tuple):
            return self._number((kind.__name__, *[self._part(element, now) for element in obj]))
        if kind is dict:
            return self._number(("dict", *obj, *[self._part(value, now) for value in obj.values()]))
        if kind is set:
            return self._number(frozenset(obj))
        unused = unused_in(obj)
        parts: list[Any] = [kind.__name__]
        for name, role in self._plan(obj):
            value = getattr(obj, name)
            if name in unused:
                continue
            if role is Role.PLAIN:
                if type(value) is float:
                    raise TypeError(
                        f"{kind.__name__}.{name} is a float that tools.explore.canonical does not classify"
                    )
                parts.append(
                    value if self._is_atom(type(value)) and type(value) is not Batch else self._part(value, now)
                )
            else:
                age = None if value is None else role_value(role, name, value, now)
                if name == "_sent_at" and age is not None and obj.idle:
                    age = min(age, INTERVAL_TICKS)  # because no response is expected
                parts.append(age)
        return self._number(tuple(parts))

    def _plan(self, obj: Any) -> tuple[tuple[str, Role], ...]:
        """Returns the attributes that decisions read, including slots, and how each of them is compared."""
        kind, own = type(obj), getattr(obj, "__dict__", ())
        key = kind, len(own)
        plan = self._plans.get(key)
        if plan is None:
            names = [name for base in kind.__mro__ for name in getattr(base, "__slots__", ())]
            left_out = self._left_out if kind is Pipeline else self._left_out | SHARED_FIELDS
            read = [name for name in (*names, *sorted(own)) if name not in left_out]
            plan = self._plans[key] = tuple((name, role_of(name)) for name in read)
        return plan

    def pack(self, pipeline: Pipeline) -> bytes:
        """Returns the state of the pipeline, from which `unpack` makes copies. The copies share frozen data."""
        return self._frozen.pack(pipeline)

    def unpack(self, packed: bytes) -> Pipeline:
        """Returns another pipeline in the given state."""
        return self._frozen.unpack(packed)

    def _is_atom(self, kind: type) -> bool:
        """Returns True if the type is immutable: numbers, strings, frozen data, and named tuples of these."""
        known = self._atomic.get(kind)
        if known is None:
            parameters = getattr(kind, "__dataclass_params__", None)
            frozen = parameters is not None and parameters.frozen
            named = issubclass(kind, tuple) and hasattr(kind, "_fields")
            known = self._atomic[kind] = frozen or named or issubclass(kind, PLAIN)
        return known


def unused_in(obj: object) -> frozenset[str]:
    """Returns the attributes that an object overwrites before it reads them again."""
    if isinstance(obj, Builder) and not len(obj):
        return UNUSED_WHEN_EMPTY
    if isinstance(obj, Flight) and obj.phase is Phase.WAITING:
        return UNUSED_WHEN_WAITING
    if isinstance(obj, Partition):
        planned, started = bool(obj.builder.planned_ends), obj.began_at
        committable = obj._ledger.committable(obj.source)
        moved = committable is not None and started is not None and committable > started
        return UNUSED_IN_PARTITION[planned, moved]
    return NOTHING


NOTHING: frozenset[str] = frozenset()
# In an open batch without messages, `_stop` is only used to reject messages that are out of order.
UNUSED_WHEN_EMPTY = frozenset({"_start", "_stop", "_started_at", "_waited_seconds"})
UNUSED_WHEN_WAITING = frozenset({"own_cause", "until"})
# Two attributes are read only in some states: the waiting time only if there is a plan, and the start only until
# the committable offset has advanced.
UNUSED_IN_PARTITION = {
    (planned, moved): frozenset({"waiting"} if not planned else ()) | frozenset({"began_at"} if moved else ())
    for planned in (False, True)
    for moved in (False, True)
}


PLAIN = (int, float, str, bytes, bool, type(None), Enum, msgspec.Struct, type)
