"""Lone surrogates: a text that was cut within an emoji. JavaScript writes "\\ud83d", which the decoder refuses."""

from __future__ import annotations

import re

from ingest.core.parse.budget import Budget

REPLACEMENT = rb"\ufffd"
# A half or a pair that the expressions go over, and a half that Python looks at.
_UNITS_ESCAPE, _UNITS_HALF = 0.2, 1.0
# A text is searched in windows of the larger size. Runs of backslashes are measured in both, usual ones in the
# first.
WINDOW_BYTES_MIN, WINDOW_BYTES_MAX = 16, 64 * 1024

_escapes = re.compile(rb"\\u[dD][89a-fA-F]").findall
# Half a pair without its other half. It may also be no escape at all but text behind an escaped backslash, and a
# second half whose first half is such a text may be lone: `_is_lone` looks at the backslashes.
_halves = re.compile(
    rb"\\u[dD](?:[89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|[c-fC-F][0-9a-fA-F]{2}(?<!(?<!\\)\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}))"
).finditer
_first_half = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}").match
_second_half = re.compile(rb"\\u[dD][c-fC-F]").match


def without_lone_surrogates(text: bytes | bytearray, budget: Budget) -> bytearray | None:
    """JSON with the replacement character for each half of a surrogate pair; None when there is none.

    Of the same length, so that places stay what they are. Raises Spent.
    """
    changed: bytearray | None = None
    for start in range(0, len(text), WINDOW_BYTES_MAX):
        stop = start + WINDOW_BYTES_MAX
        escapes = _escapes(text, start, stop + len(REPLACEMENT))
        if not escapes:
            continue
        budget.spend(_UNITS_ESCAPE * len(escapes))
        for half in _halves(text, start, stop + 2 * len(REPLACEMENT)):
            budget.spend(_UNITS_HALF)
            at = half.start()
            if at < stop and _is_lone(text, at):
                changed = bytearray(text) if changed is None else changed
                changed[at : at + len(REPLACEMENT)] = REPLACEMENT
    return changed


def _is_lone(text: bytes | bytearray, at: int) -> bool:
    if not _is_escape(text, at):
        return False
    before = at - len(REPLACEMENT)
    paired = before >= 0 and _second_half(text, at) and _first_half(text, before) and _is_escape(text, before)
    return not paired


def _is_escape(text: bytes | bytearray, at: int) -> bool:
    """Whether the backslash here is not itself escaped by an odd number of others before it."""
    run, window_bytes = 0, WINDOW_BYTES_MIN
    while at > 0:
        window = text[max(at - window_bytes, 0) : at]
        found = len(window) - len(window.rstrip(b"\\"))
        run += found
        if found < len(window):
            break
        at, window_bytes = at - found, WINDOW_BYTES_MAX
    return run % 2 == 0
