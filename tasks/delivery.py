"""Gets the items of one flush task into their sink: all of them, or all but those that the sink will never take.

Knows no Redis and no Celery. What is durable is noted in `Progress` as it happens, so that whatever interrupts
a delivery, the next run goes on where this one was. docs/decisions/006-three-levels-of-retry.md has the levels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tasks.errors import PermanentSinkError, TransientSinkError
from tasks.staging import Progress

# Refused items in such numbers, and most of all, are no poison rows: the table, or our rows, are wrong.
REFUSED_MIN = 20
REFUSED_SHARE = 0.5

Write = Callable[[Sequence[int]], None]


class OutOfTime(Exception):
    """The run's time is used up between two writes; the rest is for the next run."""


def deliver(write: Write, progress: Progress, items: int, has_time: Callable[[], bool]) -> None:
    """Writes the positions in `progress.left` until none is left; refused ones move to `progress.refused`.

    `write(positions)` raises the errors of `tasks.errors`, positions within them relative to its argument.
    A refusal that names nobody is bisected: about two writes for each halving per poison item.
    Raises TransientSinkError, PermanentSinkError (nothing that an item is to blame for), or OutOfTime.
    """
    groups = [list(progress.left)]
    while groups:
        positions = groups.pop()
        if not positions:
            continue
        if not has_time():
            raise OutOfTime(f"{len(progress.left)} of {items} items are left for the next run")
        try:
            write(positions)
        except TransientSinkError as error:
            if error.failed is not None:
                failed = {positions[place] for place in error.failed}
                _durable(progress, [position for position in positions if position not in failed])
            raise
        except PermanentSinkError as error:
            if error.configuration:
                raise
            groups.extend(_after_refusal(progress, positions, error))
        else:
            _durable(progress, positions)
    if len(progress.refused) >= REFUSED_MIN and len(progress.refused) > REFUSED_SHARE * items:
        raise PermanentSinkError(
            f"{len(progress.refused)} of {items} items are refused, the first with: {progress.refused[0][1]}",
            configuration=True,
        )


def _after_refusal(progress: Progress, positions: list[int], error: PermanentSinkError) -> list[list[int]]:
    """What is to be written after a refusal: the halves, or the rest without the named ones, or nothing."""
    if error.failed:
        named = {positions[place]: why for place, why in error.failed}
        _refuse(progress, named)
        rest = [position for position in positions if position not in named]
        if error.all_refused:
            return [rest]
        _durable(progress, rest)
        return []
    if len(positions) == 1:
        _refuse(progress, {positions[0]: str(error)})
        return []
    middle = len(positions) // 2
    return [positions[middle:], positions[:middle]]


def _durable(progress: Progress, positions: Sequence[int]) -> None:
    gone = set(positions)
    progress.left = [position for position in progress.left if position not in gone]


def _refuse(progress: Progress, named: dict[int, str]) -> None:
    _durable(progress, list(named))
    progress.refused.extend(named.items())
