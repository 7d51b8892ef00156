"""The frequencies of events in a generated session."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mix:
    """The frequencies of events in a session. A value is a probability unless its name ends with a unit.

    With the defaults, about 29 % of segments have a full snapshot, 45 % are heavy with mutations, and 26 % are
    light. The average segment has about 166 kB of JSON (20 kB compressed) and 13 custom events.
    """

    segments_mean: float = 7.0
    segments_max: int = 25
    mobile: float = 0.05
    page_load: float = 0.18
    heavy: float = 0.53
    panels_heavy: tuple[int, int] = (8, 22)
    click: float = 0.75
    dead_click: float = 0.05
    rage_click: float = 0.02
    slow_click: float = 0.03
    click_flood: float = 0.002
    negative_click: float = 0.004
    hydration_error: float = 0.012
    mutation_report: float = 0.02
    feedback: float = 0.004
    canvas: float = 0.05
    odd_event: float = 0.01
    raw_body: float = 0.004
    broken_body: float = 0.004
    trailing_bytes: float = 0.003
    replay_event_missing: float = 0.01
    replay_event_broken: float = 0.01
    video_bytes: tuple[int, int] = (12_000, 48_000)
