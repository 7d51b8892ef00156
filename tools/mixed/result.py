"""The result of a run by phase, and the table that shows this result."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from ingest.local.compare.report import Report, report_table
from tools.mixed.phases import Phase

VIOLATIONS_SHOWN_MAX = 20


@dataclass(slots=True)
class Line:
    """The result of one phase.

    `parked`: number of parked batches; `refused`: number of parked batches that workers refused because of their
    version. `duplicates`: duplicates that remain after deduplication; None if some were found but their phase is
    unknown.
    """

    phase: Phase
    readers: str
    workers: str
    messages: int = 0
    parked: int = 0
    refused: int = 0
    parked_seconds_max: float = 0.0
    read_again: int = 0
    lost: int = 0
    duplicates: int | None = 0
    seconds: float = 0.0
    check: str | None = None
    """The finding of `replays-ingest check` about mixed releases; None if it was not run."""


@dataclass(slots=True)
class Result:
    """The result of the run. `versions`: maps the name of a release in the table to its version."""

    versions: dict[str, str]
    kafka: str
    expects_refusal: bool
    ok: bool = False
    error: str = ""
    lines: list[Line] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    """Reasons for parking, each once, without the names of batches."""
    never_committed: int = 0
    """Number of parked batches whose messages were not committed at the end."""
    report: Report | None = None
    lost: int = 0
    duplicates: int = 0
    repeated: dict[str, float] = field(default_factory=dict)
    """Share of items written more than once, before de-duplication, by sink."""
    history: str = ""
    violations: list[str] = field(default_factory=list)
    """Violations of the rule that committed offsets never decrease and partitions have one owner
    (`tools.history`)."""
    exits: list[tuple[str, int]] = field(default_factory=list)
    killed: list[str] = field(default_factory=list)
    """Workers that had to be killed because they did not exit after SIGTERM."""
    halted: int = 0
    unexpected_exits: dict[str, int] = field(default_factory=dict)
    settle_seconds: float = 0.0
    seconds: float = 0.0

    def judge(self) -> None:
        """Sets `ok`, and `error` to the first failed check."""
        wrong = [f"{name} ended with code {code} after SIGTERM" for name, code in self.exits if code != 0]
        wrong += [f"{name} exited unexpectedly {count} times" for name, count in self.unexpected_exits.items()]
        wrong += [f"the history of commits: {violation}" for violation in self.violations]
        wrong += self._refusals()
        for line in self.lines:
            if line.messages == 0:
                wrong.append(f"{line.phase.name}: no message was produced")
            if line.check is not None and not all(self.versions[name] in line.check for name in _names(line)):
                wrong.append(f"{line.phase.name}: check reported {line.check or 'no releases'}")
        if all(line.check is None for line in self.lines):
            wrong.append("check was never run while releases were mixed")
        if self.never_committed:
            wrong.append(f"{self.never_committed} parked batches were never committed")
        if self.halted:
            wrong.append(f"a reader halted {self.halted} times")
        if self.report is None or not self.report.ok:
            wrong.append("the reconciliation failed" if self.report else "nothing was reconciled")
        self.error = self.error or (wrong[0] if wrong else "")
        self.ok = not self.error

    def _refusals(self) -> list[str]:
        """Checks that workers refuse batches only in phases whose readers may be newer than the workers, and in
        the phase directly after such a phase.
        """
        found, before = [], False
        for line in self.lines:
            if line.refused and not (line.phase.newer or before):
                found.append(f"{line.phase.name}: workers refused {line.refused} batches because of their version")
            before = line.phase.newer
        if self.expects_refusal and not any(line.refused for line in self.lines):
            found.append("no batch of a newer version was refused")
        return found

    def as_dict(self) -> dict[str, Any]:
        """Returns the result for `--json`."""
        found = {name: value for name, value in asdict(self).items() if name != "report"}
        found["reconciliation"] = self.report.as_dict() if self.report else None
        return found


def _names(line: Line) -> set[str]:
    return {str(which) for which in (*line.phase.readers, *line.phase.workers)}


def show(console: Console, result: Result) -> None:
    """Prints the tables and the verdict."""
    releases = ", ".join(f"{name} = {version}" for name, version in result.versions.items())
    table = Table(title=f"phases ({releases})", title_justify="left")
    for heading in ("phase", "readers", "workers"):
        table.add_column(heading)
    for heading in ("messages", "parked", "refused", "longest (s)", "read again", "lost", "duplicates"):
        table.add_column(heading, justify="right")
    for line in result.lines:
        table.add_row(
            line.phase.name, line.readers, line.workers, *_figures(line, known=result.report is not None)
        )
    table.add_section()
    table.add_row("all", "", "", *_totals(result))
    console.print(table)
    if result.report is not None and not result.report.ok:
        console.print(report_table(result.report))
        console.print(result.report.failures(), markup=False)
    if result.killed:
        console.print(f"did not end after SIGTERM and were killed: {', '.join(result.killed)}", markup=False)
    for reason in result.reasons:
        console.print(f"parked: {reason}", markup=False, soft_wrap=True)
    for name, share in result.repeated.items():
        console.print(f"written more than once, before de-duplication: {name}: {share:.2%}", markup=False)
    console.print(f"history: {result.history or 'none'}, {len(result.violations)} violations", markup=False)
    for violation in result.violations[:VIOLATIONS_SHOWN_MAX]:
        console.print(f"history: {violation}", markup=False, soft_wrap=True)
    if result.error:
        console.print(f"error: {result.error}", markup=False, soft_wrap=True)
    verdict = "nothing was lost, nothing is stored twice" if result.ok else "FAILED"
    console.print(f"{result.kafka}, {result.seconds:.0f} s: {verdict}")


def _figures(line: Line, *, known: bool) -> list[str]:
    longest = f"{line.parked_seconds_max:.1f}" if line.parked else ""
    duplicates = "?" if line.duplicates is None or not known else f"{line.duplicates:,}"
    lost = f"{line.lost:,}" if known else "?"
    counts = (line.messages, line.parked, line.refused)
    return [*(f"{count:,}" for count in counts), longest, f"{line.read_again:,}", lost, duplicates]


def _totals(result: Result) -> list[str]:
    lines, known = result.lines, result.report is not None
    sums = [
        sum(column) for column in zip(*((line.messages, line.parked, line.refused) for line in lines), strict=True)
    ]
    longest = max((line.parked_seconds_max for line in lines), default=0.0)
    again = sum(line.read_again for line in lines)
    ends = [f"{count:,}" if known else "?" for count in (result.lost, result.duplicates)]
    return [*(f"{count:,}" for count in sums), f"{longest:.1f}" if longest else "", f"{again:,}", *ends]
