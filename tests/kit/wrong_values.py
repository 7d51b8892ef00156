"""Values that a setting must refuse, derived from its type, so that a new setting is covered automatically."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from ingest.settings import Settings

NUMBERS = ("soon", "", "nan", "inf", "-1e18", "1e400")
BOOLEANS = ("perhaps", "")
CHOICES = ("loud", "none of these")
PATHS = ("/nowhere/x", "{folder}", "{text}")
TEXTS = ("", " ", "http://:x", "\x07\x1b[2J", "a\nb", "x" * 5000, "\udcff", "{", "é")


def candidates(field: FieldInfo) -> tuple[str, ...]:
    """Returns values that few or no settings of this type accept."""
    kinds = [kind for kind in _flat(field.annotation) if kind is not type(None)]
    if bool in kinds:
        return BOOLEANS
    if int in kinds or float in kinds:
        return NUMBERS
    if Path in kinds:
        return PATHS
    if any(
        get_origin(kind) is Literal or (isinstance(kind, type) and issubclass(kind, enum.Enum)) for kind in kinds
    ):
        return CHOICES
    return TEXTS


def refused_values(name: str, folder: str, text: str) -> Iterator[str]:
    """Returns the candidates that the settings refuse when no other setting is given.

    The `REPLAYS_*` variables must be unset.
    """
    for value in candidates(Settings.model_fields[name]):
        value = value.replace("{folder}", folder).replace("{text}", text)
        if not _is_accepted(name, value):
            yield value


def _is_accepted(name: str, value: str) -> bool:
    try:
        Settings(**{name: value})  # type: ignore[arg-type]
    except (ValidationError, UnicodeError):
        return False
    return True


def _flat(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Literal or not get_args(annotation):
        yield annotation
    else:
        for part in get_args(annotation):
            yield from _flat(part)
