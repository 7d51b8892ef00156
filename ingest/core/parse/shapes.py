"""Shapes of what browsers send, and what is saved of a value that has another shape.

The structs of this package are decoded strictly, which costs nothing when all is as it should be. When it is not,
`fitted` goes through the same struct field by field and leaves out only what does not fit.
"""

from __future__ import annotations

import typing
from functools import cache
from typing import Annotated, Any, TypeVar

import msgspec

# A number that BigQuery's JSON and a double can hold.
Number = (
    Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
    | Annotated[float, msgspec.Meta(ge=-1e300, le=1e300)]
    | None
)
Text = str | None
# For columns: texts of bounded length. `fitted` cuts longer ones and writes numbers out, since Relay lets numbers
# through where texts are usual, as a user's id.
SHORT_MAX = 2048
Short = Annotated[str, msgspec.Meta(max_length=SHORT_MAX)] | None

Shape = TypeVar("Shape", bound=msgspec.Struct)


def fitted(shape: type[Shape], found: dict[str, Any]) -> Shape:
    """The struct with those fields that fit; the others keep their default, which all of them have."""
    values = {}
    for name, kind, inner in _fields(shape):
        if name not in found:
            continue
        value = found[name]
        try:
            values[name] = msgspec.convert(value, kind)
        except (msgspec.ValidationError, RecursionError):
            if inner is not None and isinstance(value, dict):
                values[name] = fitted(inner, value)
            elif kind == Short and isinstance(value, str | int | float) and not isinstance(value, bool):
                values[name] = str(value)[:SHORT_MAX]
    return shape(**values)


@cache
def _fields(shape: type[msgspec.Struct]) -> list[tuple[str, Any, type[msgspec.Struct] | None]]:
    """(name, type, the struct among the alternatives of that type) of each field."""
    made = []
    for field in msgspec.structs.fields(shape):
        structs = [
            one for one in typing.get_args(field.type) if isinstance(one, type) and issubclass(one, msgspec.Struct)
        ]
        made.append((field.name, field.type, structs[0] if structs else None))
    return made
