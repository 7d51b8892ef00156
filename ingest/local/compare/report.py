"""The result of a comparison: one check per kind of data, and a table that shows the checks."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table


class ReconcileError(RuntimeError):
    """Raised if data cannot be read from a server. The message names the server and quotes its response."""


@dataclass(frozen=True, slots=True)
class Check:
    """A line of the report, with the result of one check.

    `wrong` counts items that are present but different. `note` explains what is counted.
    """

    name: str
    expected: int
    found: int
    missing: int = 0
    extra: int = 0
    wrong: int = 0
    examples: tuple[str, ...] = ()
    note: str = ""

    @property
    def ok(self) -> bool:
        """True if nothing is missing, unexpected or different."""
        return not (self.missing or self.extra or self.wrong)


@dataclass(frozen=True, slots=True)
class Report:
    """All checks, in the order of the data flow."""

    checks: tuple[Check, ...]
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """True if there is at least one check and all pass."""
        return bool(self.checks) and all(check.ok for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """Returns the report as JSON values."""
        checks = [{**asdict(check), "ok": check.ok} for check in self.checks]
        return {"ok": self.ok, "seconds": round(self.seconds, 2), "checks": checks}

    def failures(self) -> str:
        """Returns the failed checks as text, one paragraph each, or an empty string if all checks pass."""
        return "\n".join(
            f"{check.name}: expected {check.expected}, found {check.found}, missing {check.missing}, "
            f"extra {check.extra}, wrong {check.wrong}\n  " + "\n  ".join(check.examples)
            for check in self.checks
            if not check.ok
        )


def report_table(report: Report) -> Table:
    """Returns the reconciliation as a table."""
    table = Table(title="reconciliation", title_justify="left")
    for heading in ("expected", "found", "missing", "extra", "wrong"):
        if heading == "expected":
            table.add_column("what")
        table.add_column(heading, justify="right")
    table.add_column("")
    table.add_column("how it is compared")
    for check in report.checks:
        numbers = (check.expected, check.found, check.missing, check.extra, check.wrong)
        table.add_row(
            check.name,
            *(f"{number:,}" for number in numbers),
            "[green]ok[/]" if check.ok else "[red]NOT OK[/]",
            check.note,
        )
    return table
