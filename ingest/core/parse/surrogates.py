"""Replaces lone surrogates, which the decoder refuses.

A lone surrogate is half of an emoji, such as "\\ud83d", that remains where JavaScript truncated a string in the
middle of the emoji.
"""

from __future__ import annotations

import re

from ingest.core.parse.budget import Budget

REPLACEMENT = rb"\ufffd"
# Measured costs in budget units: per half or pair matched, per half checked in Python, and per byte of a window
# that contains a half. Other windows are skipped at the speed of a substring search.
_UNITS_PER_ESCAPE, _UNITS_PER_HALF, _UNITS_PER_BYTE = 0.2, 1.0, 0.006
SEARCHED_BYTES = 8 * 1024
# Runs of backslashes are counted in windows: first a small one, then large ones.
WINDOW_BYTES_MIN, WINDOW_BYTES_MAX = 16, 64 * 1024
_RUN = b"\\" * WINDOW_BYTES_MAX

_escapes = re.compile(rb"\\u[dD][89a-fA-F]").findall
# Matches the escape of a lone (unpaired) surrogate. A match can also be plain text after an escaped backslash,
# and a low surrogate that follows such text may be lone. `_is_lone` therefore checks the backslashes.
_halves = re.compile(
    rb"\\u[dD](?:[89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|[c-fC-F][0-9a-fA-F]{2}(?<!(?<!\\)\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}))"
).finditer
_first_half = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}").match
_second_half = re.compile(rb"\\u[dD][c-fC-F]").match


def without_lone_surrogates(text: bytes | bytearray, budget: Budget) -> bytearray | None:
    """Returns JSON with lone surrogates replaced; None if there are none.

    The length is unchanged, so positions stay valid. Raises BudgetSpent.
    """
    changed: bytearray | None = None
    for start in range(0, len(text), SEARCHED_BYTES):
        stop = start + SEARCHED_BYTES
        if not _may_have_escapes(text, start, stop + len(REPLACEMENT)):
            continue
        budget.spend(_UNITS_PER_BYTE * SEARCHED_BYTES)
        escapes = _escapes(text, start, stop + len(REPLACEMENT))
        if not escapes:
            continue
        budget.spend(_UNITS_PER_ESCAPE * len(escapes))
        for half in _halves(text, start, stop + 2 * len(REPLACEMENT)):
            budget.spend(_UNITS_PER_HALF)
            at = half.start()
            if at < stop and _is_lone(text, at):
                changed = bytearray(text) if changed is None else changed
                changed[at : at + len(REPLACEMENT)] = REPLACEMENT
    return changed


def _may_have_escapes(text: bytes | bytearray, start: int, stop: int) -> bool:
    """Returns True if there may be escapes. The search omits the backslash, because searching for it is slow in
    text with many backslashes.
    """
    if text.find(b"u", start, stop) < 0:
        return False
    return text.find(b"ud", start, stop) >= 0 or text.find(b"uD", start, stop) >= 0


def _is_lone(text: bytes | bytearray, at: int) -> bool:
    if not _is_escape(text, at):
        return False
    before = at - len(REPLACEMENT)
    paired = before >= 0 and _second_half(text, at) and _first_half(text, before) and _is_escape(text, before)
    return not paired


def _is_escape(text: bytes | bytearray, at: int) -> bool:
    """Returns True if the backslash here is preceded by an even number of backslashes, so that it is not itself
    escaped."""
    run, window_bytes = 0, WINDOW_BYTES_MIN
    while at > 0:
        window = text[max(at - window_bytes, 0) : at]
        found = len(window) if window == _RUN else len(window) - len(window.rstrip(b"\\"))
        run += found
        if found < len(window):
            break
        at, window_bytes = at - found, WINDOW_BYTES_MAX
    return run % 2 == 0
