"""The result of a game day: each fault that was injected, and the tables for a terminal."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from tools.gameday.prometheus import PanelQuery

SPEEDUP_FACTOR = 20.0
MESSAGES_PER_SECOND = 20.0


@dataclass(slots=True)
class PlayedFault:
    """One fault. `steps`: the steps that fixed the fault. Seconds are None for phases that were not reached.

    `fired_seconds`: from the injection to the alert. `resolved_seconds` and `drained_seconds`: from the last step
    until the alert was resolved, and until all messages produced before that step were committed. `late_segments`
    of `segments` missed the objective of 30 s; these segments count against the error budget.
    """

    fault: str
    alert: str
    section: str = ""
    summary: str = ""
    fired_seconds: float | None = None
    others: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    resolved_seconds: float | None = None
    drained_seconds: float | None = None
    segments: int = 0
    late_segments: int = 0
    trouble: str = ""

    @property
    def spent(self) -> str:
        """Spent error budget, for example `120 of 800`."""
        return f"{self.late_segments:,} of {self.segments:,}"


@dataclass(slots=True)
class Result:
    """The result of the game day."""

    factor: float = SPEEDUP_FACTOR
    rate: float = MESSAGES_PER_SECOND
    kafka: str = ""
    seconds: float = 0.0
    messages: int = 0
    played: list[PlayedFault] = field(default_factory=list)
    panels: list[PanelQuery] = field(default_factory=list)
    reconciled: str = ""
    history: str = ""
    violations: list[str] = field(default_factory=list)
    error: str = ""

    @property
    def ok(self) -> bool:
        return bool(self.played) and not self.error and not any(each.trouble for each in self.played)


def show(console: Console, result: Result) -> None:
    """Prints the table of faults, panels without data, the reconciliation, and the verdict."""

    def seconds(number: float | None) -> str:
        return "never" if number is None else f"{number:.0f}"

    table = Table(title="faults", title_justify="left", show_lines=True)
    for name in ("fault", "alert", "fired after s", "other alerts", "runbook", "steps of the fix"):
        table.add_column(name, justify="right" if name.endswith(" s") else "left")
    table.add_column("resolved after s", justify="right")
    table.add_column("lag zero after s", justify="right")
    table.add_column("segments over 30 s", justify="right")
    for each in result.played:
        table.add_row(
            each.fault,
            each.alert,
            seconds(each.fired_seconds),
            "\n".join(each.others),
            each.section.partition("#")[2] and "#" + each.section.partition("#")[2],
            "\n".join(each.steps) + (f"\nFAILED: {each.trouble.splitlines()[0]}" if each.trouble else ""),
            seconds(each.resolved_seconds),
            seconds(each.drained_seconds),
            each.spent,
        )
    console.print(table)
    empty = [asked for asked in result.panels if not asked.values]
    console.print(
        f"dashboard: {len(result.panels)} expressions queried, {len(result.panels) - len(empty)} had data"
    )
    for asked in empty:
        console.print(f"  no data: {asked.panel}: {asked.expression}", markup=False, soft_wrap=True)
    console.print(result.reconciled.strip(), markup=False)
    if result.error:
        console.print(f"error: {result.error.splitlines()[0]}", markup=False)
    verdict = "each fault raised its alert and was fixed" if result.ok else "FAILED, see above"
    console.print(f"{len(result.played)} faults, {result.messages:,} messages, {result.seconds:.0f} s: {verdict}")


def as_dict(result: Result) -> dict[str, Any]:
    """Returns the result for `--json`."""
    return {"ok": result.ok, **asdict(result)}
