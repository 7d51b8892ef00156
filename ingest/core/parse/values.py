"""Decodes JSON of any shape, if the budget covers its maximum cost."""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import islice
from typing import Any

import msgspec

from ingest.core.parse.budget import Budget
from ingest.core.parse.events import MalformedEvent
from ingest.core.parse.picked import scalar_of

# Up to this size, values need not be counted.
SMALL_BYTES = 512
# A decoded string may use four times as much memory as its JSON, and each value has an overhead of about a hundred
# bytes.
DOCUMENT_BYTES_MAX, VALUES_MAX = 8 * 1024 * 1024, 100_000
# Measured costs in budget units: per small document and per byte of a small document; per byte and per value of a
# larger document; per byte and per field if only the top-level fields are decoded.
_UNITS_PER_SMALL, _UNITS_PER_SMALL_BYTE = 0.5, 0.01
_UNITS_PER_BYTE, _UNITS_PER_VALUE = 0.006, 0.12
_UNITS_PER_FLAT_BYTE, _UNITS_PER_FIELD = 0.001, 0.25

_decode = msgspec.json.Decoder().decode
_decode_fields: Callable[[Any], dict[str, msgspec.Raw]] = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def built(text: msgspec.Raw, budget: Budget) -> Any:
    """Returns the whole value. Raises MalformedEvent if the value is too large, BudgetSpent if the budget is used
    up, and msgspec errors."""
    size_bytes = memoryview(text).nbytes
    if size_bytes <= SMALL_BYTES:
        budget.spend(_UNITS_PER_SMALL + _UNITS_PER_SMALL_BYTE * size_bytes)
        return _decode(text)
    if size_bytes > DOCUMENT_BYTES_MAX:
        raise MalformedEvent("the data of an event is too long")
    budget.spend(_UNITS_PER_BYTE * size_bytes)
    document = bytes(text)
    values_max = document.count(b",") + document.count(b"[") + document.count(b"{") + 1
    if values_max > VALUES_MAX:
        raise MalformedEvent("the data of an event has too many values")
    budget.spend(_UNITS_PER_VALUE * values_max)
    return _decode(text)


def fields(text: msgspec.Raw, budget: Budget, names: Collection[str] | int) -> dict[str, Any]:
    """Returns fields of an object: at least the fields in `names` or, if `names` is a number, at least that many
    of the first fields.

    In a long object, strings are truncated and nested values are None. Raises MalformedEvent if the value is not
    an object or has too many fields, BudgetSpent if the budget is used up, and msgspec errors.
    """
    size_bytes = memoryview(text).nbytes
    if size_bytes > SMALL_BYTES:
        return _fields_of_long_value(text, size_bytes, budget, names)
    budget.spend(_UNITS_PER_SMALL + _UNITS_PER_SMALL_BYTE * size_bytes)
    found = _decode(text)
    if not isinstance(found, dict):
        raise MalformedEvent("an object was expected")
    return found


def _fields_of_long_value(
    text: msgspec.Raw, size_bytes: int, budget: Budget, names: Collection[str] | int
) -> dict[str, Any]:
    budget.spend(_UNITS_PER_FLAT_BYTE * size_bytes)
    fields_max = bytes(text).count(b":")
    if fields_max > VALUES_MAX:
        raise MalformedEvent("the data of an event has too many fields")
    budget.spend(_UNITS_PER_FIELD * fields_max)
    try:
        found = _decode_fields(text)
    except msgspec.ValidationError:
        raise MalformedEvent("an object was expected") from None
    if isinstance(names, int):
        return {name: scalar_of(value) for name, value in islice(found.items(), names)}
    return {name: scalar_of(found[name]) for name in names if name in found}
