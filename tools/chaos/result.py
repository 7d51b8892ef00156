"""The result of a chaos run: the faults, the comparison of every sink, and the tables that show them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from ingest.local.compare.report import Report, report_table
from ingest.local.load.produce import ProducedTotals, summary

VIOLATIONS_SHOWN_MAX = 20


@dataclass(slots=True)
class InjectedFault:
    """One fault: its start (seconds into the run), duration, target and error."""

    kind: str
    at_seconds: float
    seconds: float
    target: str = ""
    error: str = ""


@dataclass(slots=True)
class Result:
    """The result of the run."""

    seed: int
    kafka: str
    fault_seconds: float
    group_protocol: str = "classic"
    ok: bool = False
    error: str = ""
    faults: list[InjectedFault] = field(default_factory=list)
    load: ProducedTotals | None = None
    report: Report | None = None
    settle_seconds: float = 0.0
    seconds: float = 0.0
    lost: int = 0
    doubled: int = 0
    """Identities that exist more than once after deduplication."""
    twice: dict[str, float] = field(default_factory=dict)
    """Share of items written more than once, before deduplication, by sink."""
    rebalances: int = 0
    history: str = ""
    violations: list[str] = field(default_factory=list)
    """Violations of the rule that the committed offset of each partition behaves as a register with one owner
    (`tools.history`)."""
    unowned_seconds: float = 0.0
    """Longest time for which a partition had no owner."""
    unowned_undisturbed_seconds: float = 0.0
    """The same, counted from the last fault or start that made the group rebalance."""
    unowned_seconds_max: float = 0.0
    """Bound of `unowned_undisturbed_seconds`."""
    halted: int = 0
    exit_codes: dict[str, int] = field(default_factory=dict)
    crashes: list[str] = field(default_factory=list)
    """Log lines of processes that were aborted by their own code, such as failed assertions of a library."""
    unexpected_exits: dict[str, int] = field(default_factory=dict)

    def judge(self) -> None:
        """Sets `ok`, and `error` to the first failed check."""
        fault_errors = [f"{fault.kind}: {fault.error}" for fault in self.faults if fault.error]
        exits = [f"{name} ended with code {code}" for name, code in self.exit_codes.items() if code != 0]
        wrong = [
            *fault_errors,
            *(f"the history of commits: {violation}" for violation in self.violations),
            *exits,
            *self.crashes,
        ]
        if self.halted:
            wrong.append(f"a reader halted {self.halted} times")
        if self.unowned_undisturbed_seconds > self.unowned_seconds_max:
            wrong.append(
                f"a partition had no owner for {self.unowned_undisturbed_seconds:.1f} s after the last fault that "
                f"concerned the group; at most {self.unowned_seconds_max:g} s are allowed"
            )
        if self.report is None or not self.report.ok:
            wrong.append("the reconciliation failed" if self.report else "nothing was reconciled")
        if not self.faults:
            wrong.append("no fault was injected")
        self.error = self.error or (wrong[0] if wrong else "")
        self.ok = not self.error

    def as_dict(self) -> dict[str, Any]:
        """Returns the result for `--json`."""
        found = {name: value for name, value in asdict(self).items() if name not in ("load", "report")}
        found["load"] = summary(self.load) if self.load else None
        found["reconciliation"] = self.report.as_dict() if self.report else None
        return found


def show(console: Console, result: Result) -> None:
    """Prints three tables and the verdict."""
    faults = Table(title="faults injected", title_justify="left")
    faults.add_column("fault")
    faults.add_column("times", justify="right")
    faults.add_column("seconds", justify="right")
    for kind in sorted({fault.kind for fault in result.faults}):
        of_kind = [fault for fault in result.faults if fault.kind == kind]
        faults.add_row(kind, str(len(of_kind)), f"{sum(fault.seconds for fault in of_kind):.0f}")
    faults.add_section()
    faults.add_row("all", str(len(result.faults)), f"{sum(fault.seconds for fault in result.faults):.0f}")
    console.print(faults)
    if result.report is not None:
        console.print(report_table(result.report))
        if not result.report.ok:
            console.print(result.report.failures(), markup=False)
    figures = Table(title="figures", title_justify="left")
    figures.add_column("figure")
    figures.add_column("value", justify="right")
    if result.load is not None:
        figures.add_row("messages produced", f"{result.load.messages:,}")
    known = result.report is not None
    figures.add_row("lost", f"{result.lost:,}" if known else "unknown")
    figures.add_row("duplicates after de-duplication", f"{result.doubled:,}" if known else "unknown")
    figures.add_row("history of committed offsets", result.history or "none")
    figures.add_row("violations in the history", f"{len(result.violations)}")
    figures.add_row("seconds from the last fault to lag zero", f"{result.settle_seconds:.1f}")
    figures.add_row("assignments of partitions", f"{result.rebalances:,}")
    figures.add_row("longest time without an owner, in seconds", f"{result.unowned_seconds:.1f}")
    figures.add_row(
        f"the same since the last fault of the group; at most {result.unowned_seconds_max:g}",
        f"{result.unowned_undisturbed_seconds:.1f}",
    )
    for name, share in result.twice.items():
        figures.add_row(f"written twice: {name}", f"{share:.2%}")
    for name, count in result.unexpected_exits.items():
        figures.add_row(f"unexpected exits of {name}", f"{count}")
    console.print(figures)
    for violation in result.violations[:VIOLATIONS_SHOWN_MAX]:
        console.print(f"history: {violation}", markup=False)
    if result.error:
        console.print(f"error: {result.error}", markup=False)
    verdict = "nothing was lost, nothing is stored twice" if result.ok else "FAILED, see above"
    console.print(
        f"seed {result.seed}, {result.kafka}, {result.group_protocol}, {result.seconds:.0f} s: {verdict}"
    )
