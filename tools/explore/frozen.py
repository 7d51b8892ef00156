"""Copies pipelines quickly, by storing the state as bytes in which frozen data is replaced by numbers.

The bytes never leave the process, so pickle is safe here.
"""

from __future__ import annotations

import io
import pickle  # noqa: TID251
from collections.abc import Callable
from types import MethodType
from typing import Any

from ingest.core.pipeline import Pipeline
from ingest.core.rejects import Rejects


class PipelinePacker:
    """Packs and unpacks pipelines with the same limits."""

    def __init__(self, is_atom: Callable[[type], bool]) -> None:
        self._is_atom = is_atom
        self._handlers: dict[type, Any] = {}

    def pack(self, pipeline: Pipeline) -> bytes:
        """Returns the state of the pipeline without modifying the pipeline."""
        state = dict(vars(pipeline))
        handlers = state.pop("_handlers")
        if not self._handlers:
            self._handlers = {event: handler.__func__ for event, handler in handlers.items()}
        packed = io.BytesIO()
        _Pickler(packed, self._is_atom).dump(state)
        return packed.getvalue()

    def unpack(self, packed: bytes) -> Pipeline:
        """Returns a pipeline in the given state."""
        pipeline = object.__new__(Pipeline)
        vars(pipeline).update(pickle.loads(packed))  # noqa: S301
        vars(pipeline)["_handlers"] = {
            event: MethodType(handler, pipeline) for event, handler in self._handlers.items()
        }
        return pipeline


class _Pickler(pickle.Pickler):
    """Pickles a reference to each frozen object (its number in `_kept`) instead of its content. Counts of rejects
    (`Rejects`) are also pickled as references, because no decision reads them.
    """

    def __init__(self, packed: io.BytesIO, is_atom: Callable[[type], bool]) -> None:
        super().__init__(packed, protocol=pickle.HIGHEST_PROTOCOL)
        self._is_atom = is_atom

    def reducer_override(self, obj: Any) -> Any:
        """Replaces frozen objects with references. Called for every object except plain numbers, strings and
        collections.
        """
        kind = type(obj)
        if kind is type or not (kind is Rejects or self._is_atom(kind)):
            return NotImplemented
        return kept, (_keep(obj),)


_kept: list[Any] = []
_numbers: dict[int, int] = {}


def kept(number: int) -> Any:
    """Returns the object with the given number."""
    return _kept[number]


def _keep(obj: Any) -> int:
    """Stores an object unless it is already stored, and returns its number. Objects are compared by identity,
    because equal objects may differ in fields that are not compared, such as displayed times.
    """
    number = _numbers.get(id(obj))
    if number is None:
        number = _numbers[id(obj)] = len(_kept)
        _kept.append(obj)
    return number
