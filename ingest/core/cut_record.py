"""The cut record: batch boundaries above the committed offset, as the metadata string of an offset commit.

Kafka stores up to 4095 bytes of it, unless told otherwise, and hands it to the next owner. Format: `1` then, for
each batch in order, `,` and its end minus the previous end (the first: minus the committed offset) in base 36.
docs/decisions/014-same-cut.md says why it is kept there.
"""

from __future__ import annotations

from collections.abc import Sequence

VERSION = "1"
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def encode(committed: int, stops: Sequence[int], bytes_max: int) -> str:
    """The record of these ends, ascending and above `committed`; without any it is empty.

    Ends that do not fit into `bytes_max` are left out, the last ones first.
    """
    if not stops:
        return ""
    parts = [VERSION]
    length, previous = len(VERSION), committed
    for stop in stops:
        assert stop > previous, (committed, stops)
        digits, rest = "", stop - previous
        while rest:
            rest, digit = divmod(rest, 36)
            digits = _DIGITS[digit] + digits
        length += 1 + len(digits)
        if length > bytes_max:
            break
        parts.append(digits)
        previous = stop
    return ",".join(parts)


def decode(committed: int, record: str) -> tuple[int, ...]:
    """The ends again. A record that is not ours (another tool's, a later version's) is empty: nothing is lost."""
    version, *parts = record.split(",")
    if version != VERSION:
        return ()
    stops, previous = [], committed
    for part in parts:
        try:
            step = int(part, 36)
        except ValueError:
            return ()
        if step <= 0:
            return ()
        previous += step
        stops.append(previous)
    return tuple(stops)
