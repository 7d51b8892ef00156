"""Writes the items of one flush task to their sink, except those that the sink permanently refuses.

This module does not depend on Redis or Celery. Durable items are recorded in `Progress` immediately, so that the
next run continues where an interrupted one stopped. Refusals are recorded only after `Sink.examine` has confirmed,
both before and after they occur, that the destination is healthy. Unconfirmed refusals are discarded, so no item
is lost because a table was altered or repaired.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tasks.errors import PermanentSinkError, TransientSinkError
from tasks.staging import Progress

# If at least this many items, and most of the task's items, are refused, the fault is in the table or our rows.
REFUSED_ITEMS_MIN = 20
REFUSED_SHARE = 0.5
# After SPREAD_AFTER_REFUSALS refusals without a success, SPREAD_ITEMS items spread over the rest are written one
# by one. If all of these are refused too, the run assumes that the task's other items would also be refused.
SPREAD_AFTER_REFUSALS = 8
SPREAD_ITEMS = REFUSED_ITEMS_MIN - SPREAD_AFTER_REFUSALS
# Maximum number of writes per run. The next run writes the remaining items.
WRITES_MAX = 200

Write = Callable[[Sequence[int]], None]
Examine = Callable[[Sequence[int]], None]


class TimeLimitReached(Exception):
    """The run has used up its time or its maximum number of writes. The next run continues where this run
    stopped.
    """


def deliver(
    write: Write, examine: Examine, progress: Progress, items: int, has_time_left: Callable[[], bool]
) -> None:
    """Writes the items at the positions in `progress.left` until none is left; positions of refused items move to
    `progress.refused`.

    `write(positions)` raises the errors of `tasks.errors`, with positions relative to its argument.
    `examine(positions)` raises the same errors if the destination of these items is at fault. If a refusal names
    no item, the items are bisected: each refused item costs about two writes per halving. Raises
    TransientSinkError, PermanentSinkError (no item is at fault), or TimeLimitReached.
    """
    _Delivery(write, examine, progress, items, has_time_left).run()


class _Delivery:
    """One run. `suspects` holds the unconfirmed refusals of this run: error by position."""

    def __init__(
        self, write: Write, examine: Examine, progress: Progress, items: int, has_time_left: Callable[[], bool]
    ) -> None:
        self._write = write
        self._examine = examine
        self._progress = progress
        self._items = items
        self._has_time_left = has_time_left
        self._groups: list[list[int]] = [list(progress.left)]
        self._suspects: dict[int, str] = {}
        self._writes = 0
        self._examined = self._accepted_any = self._spread = False

    def run(self) -> None:
        """See `deliver`."""
        while self._groups:
            positions = self._groups.pop()
            if not positions:
                continue
            if self._writes >= WRITES_MAX or not self._has_time_left():
                self._confirm_refusals()
                left = len(self._progress.left)
                raise TimeLimitReached(f"{left} of {self._items} items are left for the next run")
            self._attempt(positions)
        self._confirm_refusals()

    def _attempt(self, positions: list[int]) -> None:
        """Writes one group of items. If the sink refuses the group, schedules further writes of these items in
        smaller groups.
        """
        self._writes += 1
        try:
            self._write(positions)
        except TransientSinkError as error:
            if error.failed is not None:
                failed = {positions[place] for place in error.failed}
                self._note_durable([position for position in positions if position not in failed])
            raise
        except PermanentSinkError as error:
            if error.configuration:
                raise
            if not self._examined:
                self._examine(positions)
                self._examined = True
            self._schedule_after_refusal(positions, error)
        else:
            self._note_durable(positions)

    def _schedule_after_refusal(self, positions: list[int], error: PermanentSinkError) -> None:
        """Schedules the next groups: the two halves, the rest without the named items, or none."""
        if error.failed:
            named = {positions[place]: why for place, why in error.failed}
            rest = [position for position in positions if position not in named]
            if error.all_refused:
                self._groups.append(rest)
            else:
                self._note_durable(rest)
            self._add_suspects(named)
            if len(positions) == 1:
                self._schedule_sample()
            return
        if error.suspects is not None:
            suspects = [positions[place] for place in error.suspects]
            self._note_durable([position for position in positions if position not in set(suspects)])
            positions = suspects
        if len(positions) == 1:
            self._add_suspects({positions[0]: str(error)})
            self._schedule_sample()
            return
        middle = len(positions) // 2
        self._groups += [positions[middle:], positions[:middle]]

    def _note_durable(self, positions: Sequence[int]) -> None:
        durable_positions = set(positions)
        self._accepted_any = self._accepted_any or bool(durable_positions)
        self._progress.left = [position for position in self._progress.left if position not in durable_positions]

    def _add_suspects(self, named: dict[int, str]) -> None:
        self._suspects.update(named)
        refused = len(self._suspects) + len(self._progress.refused)
        none_accepted = self._spread and not self._accepted_any
        if refused >= REFUSED_ITEMS_MIN and (refused > REFUSED_SHARE * self._items or none_accepted):
            self._discard_refusals(refused)

    def _schedule_sample(self) -> None:
        """If every write so far was refused, schedules individual writes for a sample of the remaining items."""
        if self._spread or self._accepted_any or len(self._suspects) < SPREAD_AFTER_REFUSALS:
            return
        self._spread = True
        rest = [position for group in reversed(self._groups) for position in group]
        sample = set(rest[:: max(1, len(rest) // SPREAD_ITEMS)][:SPREAD_ITEMS])
        self._groups = [[position for position in group if position not in sample] for group in self._groups]
        self._groups += [[position] for position in sorted(sample)]

    def _discard_refusals(self, refused: int) -> None:
        """Discards all refusals, including those of earlier runs, and raises an error for the operator."""
        first = next(iter(self._suspects.values()))
        self._progress.left = sorted({*self._progress.left, *(place for place, _ in self._progress.refused)})
        self._progress.refused = []
        raise PermanentSinkError(
            f"{refused} of {self._items} items are refused, the first with: {first}", configuration=True
        )

    def _confirm_refusals(self) -> None:
        """Confirms the refusals of this run if the destination is still healthy."""
        if not self._suspects:
            return
        self._examine(list(self._suspects))
        gone = set(self._suspects)
        self._progress.left = [position for position in self._progress.left if position not in gone]
        self._progress.refused.extend(sorted(self._suspects.items()))
