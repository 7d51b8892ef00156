"""The stored data of a replay, and the errors raised while searching and erasing."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

from tasks.errors import shortened


class EraseFailed(Exception):
    """Raised if a server did not respond or refused the request. Completed steps are not undone, and the next run
    continues."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One generation of an object."""

    name: str
    number: int


@dataclass(frozen=True, slots=True)
class Holdings:
    """The stored data of one replay.

    `ranges`: maps each packed object to the (first byte, length) pairs of the replay's segments in it, including
    segments that have already been overwritten. `rows`: number of rows by ClickHouse table. `facts`: number of
    rows in BigQuery. `newest_at`: time at which Relay received the replay's newest segment, in Unix seconds.
    `letters`: dead letters with content of the replay, including letters whose project is unknown and that contain
    the replay's id. `elsewhere`: other projects with a replay that has this id. `parked`: number of parked
    batches. `notes`: data that could not be read.
    """

    project_id: int
    replay_id: str
    objects: tuple[Generation, ...] = ()
    ranges: Mapping[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)
    facts: int = 0
    newest_at: float | None = None
    letters: tuple[str, ...] = ()
    billed: bool = False
    elsewhere: tuple[int, ...] = ()
    parked: int = 0
    notes: tuple[str, ...] = ()

    @property
    def erasable(self) -> bool:
        """Whether an erasure would delete anything."""
        return bool(self.objects or self.ranges or self.facts or any(self.rows.values()))

    def counts(self) -> dict[str, int]:
        """Counts by kind, for output as text and as JSON."""
        return {
            "objects": len(self.objects),
            "packed_objects": len(self.ranges),
            "packed_bytes": sum(length for spans in self.ranges.values() for _, length in spans),
            "clickhouse_rows": sum(self.rows.values()),
            "bigquery_rows": self.facts,
        }


SHOWN_CHARACTERS_MAX = 80
LIST_CHARACTERS_MAX = 32 * 1024 * 1024  # almost a million ids


def listed_ids(file: IO[str]) -> list[str]:
    """Returns the ids in a file, separated by white space. Raises ValueError for an invalid id or a file that is
    too long.
    """
    text = file.read(LIST_CHARACTERS_MAX + 1)
    if len(text) > LIST_CHARACTERS_MAX:
        raise ValueError(f"the list has more than {LIST_CHARACTERS_MAX} characters: split it")
    return [plain_id(word) for word in text.split()]


def plain_id(text: str) -> str:
    """Returns the id as 32 lower-case hex digits without dashes. Raises ValueError for an invalid replay id."""
    plain = text.strip().replace("-", "").lower()
    if not re.fullmatch(r"[0-9a-f]{32}", plain):
        shortened_text = text if len(text) <= SHOWN_CHARACTERS_MAX else text[:SHOWN_CHARACTERS_MAX] + "…"
        raise ValueError(f"{shortened_text!r} is not a replay id (32 hex digits, with or without dashes)")
    return plain


def describe_uncovered_data(found: Holdings) -> list[str]:
    """Returns one line for each kind of data that erasure does not cover."""
    left = list(found.notes)
    if found.letters:
        letter_ids = ", ".join(found.letters[:5]) + (", ..." if len(found.letters) > 5 else "")
        left.append(f"dead letters contain parts of it until they expire: do not replay them ({letter_ids})")
    if found.parked:
        left.append(f"parked batches ({found.parked}) may write more of it: run this again once they have settled")
    return left


@contextlib.contextmanager
def converting_errors(what: str, classify: Callable[[BaseException], Any]) -> Iterator[None]:
    """Converts any exception raised by a client to EraseFailed, with a one-line message that names the server."""
    try:
        yield
    except EraseFailed:
        raise
    except Exception as error:
        text = shortened(classify(error).message)
        todo = "; run `replays-ingest migrate`" if "replay_places" in text and "UNKNOWN_TABLE" in text else ""
        raise EraseFailed(f"{what}: {text}{todo}") from error
