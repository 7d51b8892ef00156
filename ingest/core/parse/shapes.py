"""Shapes of the values that browsers send. All that has one of these is of bounded size when it was decoded.

The structs of this package are decoded strictly, which costs nothing when all is as it should be. When it is not,
`ingest.core.parse.picked` goes through the same struct field by field and leaves out only what does not fit.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

_Integer = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_Float = Annotated[float, msgspec.Meta(ge=-1e300, le=1e300)]

# A number that BigQuery's JSON and a double can hold.
Number = _Integer | _Float | None
Text = str | None
# The size of a request's or a response's body: browsers write numbers and texts.
SizeValue = _Integer | _Float | bool | str | None
# For columns: texts of bounded length.
SHORT_MAX = 2048
Short = Annotated[str, msgspec.Meta(max_length=SHORT_MAX)] | None

NULL = msgspec.Raw(b"null")
"""Stands for a field that is not there."""


def is_null(text: msgspec.Raw) -> bool:
    """Whether it is JSON's null, or absent."""
    return bytes(memoryview(text)[:5]) == b"null"
