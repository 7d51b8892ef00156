"""One pipeline as a value that compares: what it will decide, and nothing about when it got there.

Moments become ticks relative to now, capped where no bound of the limits can tell them apart any more. What no
decision reads is left out (`LEFT_OUT`). The walk over the core's objects is generic: a new attribute is part of
the value by itself, and a new float stops the explorer until `AGES`, `DEADLINES` or `DURATIONS` names it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Hashable
from enum import Enum
from types import MethodType
from typing import Any

import msgspec

from ingest.core.batching import Builder
from ingest.core.flight import Flight, Phase
from ingest.core.pipeline import Pipeline

TICK_SECONDS = 0.5
INTERVAL_TICKS = 1
ANSWER_TICKS = 2

# Moments in the past, and the age in ticks from which on nothing changes any more.
AGES = {
    "_started_at": INTERVAL_TICKS,
    "_full_since": INTERVAL_TICKS,
    "_refused_at": INTERVAL_TICKS,
    "_cut_early_at": INTERVAL_TICKS,
    "_ticked_at": INTERVAL_TICKS,
    "_sent_at": ANSWER_TICKS,
}
# Moments in the future: something happens once they are reached.
DEADLINES = frozenset({"until", "release_by", "stopping_by"})
DURATIONS = frozenset({"_waited_seconds"})
# Constants, views for operators, and counts of rejects: under the limits of the model no decision reads them.
LEFT_OUT = frozenset(
    {"limits", "_limits", "_handlers", "rejects", "since", "error", "shown", "shown_at", "_renewed_at"}
)
# What copies of a pipeline have in common. `rejects` changes, and no decision reads it.
SHARED = frozenset({"limits", "_limits", "rejects"})


class Canon:
    """Values and copies of pipelines. Equal parts get equal numbers: a value is small and compares fast."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        self._fields: dict[type, tuple[str, ...]] = {}
        self._atomic: dict[type, bool] = {}

    def value(self, pipeline: Pipeline, now: float) -> int:
        """Equal for two pipelines that will decide alike on the same events after the same time."""
        value: int = self._part(pipeline, now, {})
        return value

    def _number(self, part: Hashable) -> int:
        return self._numbers.setdefault(part, len(self._numbers))

    def _part(self, thing: Any, now: float, seen: dict[int, int]) -> Any:
        kind = type(thing)
        if self._is_atom(kind):
            return thing
        if id(thing) in seen:
            return "again", seen[id(thing)]
        seen[id(thing)] = len(seen)
        if kind in (list, deque, tuple):
            return self._number((kind.__name__, *(self._part(one, now, seen) for one in thing)))
        if kind is dict:
            pairs = ((key, self._part(one, now, seen)) for key, one in thing.items())
            return self._number(("dict", *(part for pair in pairs for part in pair)))
        if kind is set:
            return self._number(frozenset(thing))
        unused = LEFT_OUT | unused_in(thing)
        parts = [
            self._field(kind, name, getattr(thing, name), now, seen)
            for name in self.fields(thing)
            if name not in unused
        ]
        return self._number((kind.__name__, *parts))

    def _field(self, kind: type, name: str, value: Any, now: float, seen: dict[int, int]) -> Any:
        if value is None:
            return None
        if name in AGES:
            return min(AGES[name], round((now - value) / TICK_SECONDS))
        if name in DEADLINES:
            return max(0, math.ceil((value - now) / TICK_SECONDS - 1e-9))
        if isinstance(value, float) and name not in DURATIONS:
            raise TypeError(f"{kind.__name__}.{name} is a float that tools.explore.canonical does not classify")
        return self._part(value, now, seen)

    def fields(self, thing: Any) -> tuple[str, ...]:
        """The names of an object's attributes, those in slots included."""
        kind = type(thing)
        if kind not in self._fields:
            slots = [name for base in kind.__mro__ for name in getattr(base, "__slots__", ())]
            self._fields[kind] = (*slots, *sorted(vars(thing))) if hasattr(thing, "__dict__") else tuple(slots)
        return self._fields[kind]

    def copy(self, pipeline: Pipeline) -> Pipeline:
        """Another pipeline in the same state. Frozen data is shared."""
        copied: Pipeline = self._copy(pipeline, {})
        return copied

    def _copy(self, thing: Any, made: dict[int, Any]) -> Any:
        kind = type(thing)
        if self._is_atom(kind):
            return thing
        if id(thing) in made:
            return made[id(thing)]
        if kind is MethodType:
            return MethodType(thing.__func__, self._copy(thing.__self__, made))
        if kind is dict:
            copied: Any = {}
            made[id(thing)] = copied
            copied.update((key, self._copy(one, made)) for key, one in thing.items())
            return copied
        if kind in COLLECTIONS:
            return made.setdefault(id(thing), COLLECTIONS[kind](self._copy(one, made) for one in thing))
        new = object.__new__(kind)
        made[id(thing)] = new
        for name in self.fields(thing):
            value = getattr(thing, name)
            setattr(new, name, value if name in SHARED else self._copy(value, made))
        return new

    def _is_atom(self, kind: type) -> bool:
        """Whether things of this kind never change: numbers, texts, frozen data, named tuples of these."""
        known = self._atomic.get(kind)
        if known is None:
            parameters = getattr(kind, "__dataclass_params__", None)
            frozen = parameters is not None and parameters.frozen
            named = issubclass(kind, tuple) and hasattr(kind, "_fields")
            known = self._atomic[kind] = frozen or named or issubclass(kind, PLAIN)
        return known


def unused_in(thing: object) -> frozenset[str]:
    """What is left over in an object from before, and will be set again before it is read."""
    if isinstance(thing, Builder) and not len(thing):
        return frozenset({"_start", "_started_at", "_waited_seconds"})
    if isinstance(thing, Flight) and thing.phase is Phase.WAITING:
        return frozenset({"until"})
    return frozenset()


COLLECTIONS: dict[type, Callable[[Any], Any]] = {list: list, deque: deque, set: set, tuple: tuple}
PLAIN = (int, float, str, bytes, bool, type(None), Enum, msgspec.Struct, type)
