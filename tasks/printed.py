"""Sanitizes text for output: no terminal control sequences, no secrets. Used by all output paths."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any

HIDDEN = "***"
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
DELETE = "\x7f"  # the one control character that ASCII JSON does not escape
_BLANKS = "\t\n\r"
# Letters and symbols that Unicode classifies as printable although they are blank.
_INVISIBLE_CHARACTERS = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"
# Combining marks are drawn above or below a letter. Many combining marks on one letter would cover the adjacent
# lines.
MARKS_MAX = 4
_EXCESS_COMBINING_MARKS = re.compile(
    rf"([\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]{{{MARKS_MAX}}})"
    r"[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]+"
)
_INVISIBLE_CHARACTER = re.compile(f"[{_INVISIBLE_CHARACTERS}]")
# Matches up to the last @ before a space or quote, because a password may contain unencoded /, : and @.
_SCHEME = r"[a-z][a-z0-9+.-]{0,19}://"
_URL_PASSWORD = re.compile(
    rf"(?P<start>{_SCHEME}[^\s:/@\"'<>]{{0,200}}):(?P<password>[^\s\"'<>]{{1,500}})@", re.IGNORECASE
)
_URL_TOKEN = re.compile(rf"(?P<start>{_SCHEME})(?P<token>[^\s:/?#@\"'<>*]{{1,500}})@", re.IGNORECASE)
_ASSIGNED_SECRET = re.compile(
    r"(?P<start>(?:password|passwd|api_?key|access_token|secret)[\"']?\s*[=:]\s*[\"']?)(?P<value>[^\s\"',;&]+)",
    re.IGNORECASE,
)
_QUERY_SECRET = re.compile(
    r"(?P<start>[?&](?:[\w.-]{0,40}token|[\w.-]{0,40}signature|sig|key|pwd|auth)=)(?P<value>[^\s\"'&#]+)",
    re.IGNORECASE,
)
_AUTHORIZATION_SECRET = re.compile(
    r"(?P<start>authorization[\"']?\s*[=:]\s*[\"']?(?:(?:basic|bearer)\s+)?)(?P<value>[^\s\"',;&]+)", re.IGNORECASE
)


def printable(text: str, replacement: str = REPLACEMENT) -> str:
    """Returns one line without control characters, escapes, bidirectional marks, line separators, and zero-width
    and blank characters, and with at most MARKS_MAX consecutive combining marks.

    White space becomes a space, and other unprintable characters become `replacement`.
    """
    if not text.isascii():
        text = _EXCESS_COMBINING_MARKS.sub(r"\1", _INVISIBLE_CHARACTER.sub(replacement, text))
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _replaced(each, replacement) for each in text)


def _replaced(letter: str, replacement: str) -> str:
    return " " if letter in _BLANKS or unicodedata.category(letter) == "Zs" else replacement


def ascii_json(value: Any, default: Callable[[Any], Any] | None = None) -> str:
    """Encodes the value as JSON of printable ASCII only; everything else is escaped."""
    return json.dumps(value, default=default).replace(DELETE, "\\u007f")


def without_secrets(text: str, known: Iterable[str] = ()) -> str:
    """Hides passwords and tokens in URLs, queries, assignments and Authorization headers, and the values in
    `known`.
    """
    for value in sorted(known, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    text = _URL_PASSWORD.sub(rf"\g<start>:{HIDDEN}@", text)
    text = _URL_TOKEN.sub(rf"\g<start>{HIDDEN}@", text)
    for shape in (_ASSIGNED_SECRET, _QUERY_SECRET, _AUTHORIZATION_SECRET):
        text = shape.sub(rf"\g<start>{HIDDEN}", text)
    return text
