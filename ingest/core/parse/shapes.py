"""Types of the values that browsers send. All these types have a bounded size when decoded.

Structs are decoded strictly, which costs nothing for valid input. For invalid input, `ingest.core.parse.picked`
decodes the same struct field by field and leaves out only what does not fit.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

_Integer = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_Float = Annotated[float, msgspec.Meta(ge=-1e300, le=1e300)]

# A number that BigQuery's JSON and a double can hold.
Number = _Integer | _Float | None
Text = str | None
# Size of a request or response body, which browsers send as a number or a string.
SizeValue = _Integer | _Float | bool | str | None
# Strings of bounded length, for columns.
SHORT_CHARACTERS_MAX = 2048
Short = Annotated[str, msgspec.Meta(max_length=SHORT_CHARACTERS_MAX)] | None

NULL = msgspec.Raw(b"null")
"""Placeholder for an absent field."""


def is_null(text: msgspec.Raw) -> bool:
    """Returns True if the value is JSON null or absent."""
    return bytes(memoryview(text)[:5]) == b"null"
