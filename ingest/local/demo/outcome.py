"""The outcome of a demo, as tables and as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from ingest.local.compare.report import Report, report_table
from ingest.local.demo.screen import Screen
from ingest.local.load.produce import ProducedTotals, summary

SAMPLE_TITLE = "pages by rage clicks"


@dataclass(slots=True)
class Outcome:
    """The outcome of a demo, for the table and for JSON."""

    ok: bool = False
    error: str = ""
    load: ProducedTotals | None = None
    report: Report | None = None
    sample: list[tuple[Any, ...]] = field(default_factory=list)
    rage_replay: str = ""
    killed: str = ""
    reader_exit: int | None = None
    addresses: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def messages_per_second(self) -> float:
        """The throughput in messages per second, from the first message produced to the last offset committed."""
        seconds = self.seconds.get("ingest", 0.0)
        return self.load.messages / seconds if self.load and seconds else 0.0

    @property
    def mb_per_second(self) -> float:
        """The throughput in megabytes of message values per second, from the first message produced to the last
        offset committed.
        """
        seconds = self.seconds.get("ingest", 0.0)
        return self.load.size_bytes / 1e6 / seconds if self.load and seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Returns the outcome as a dictionary, for --json."""
        return {
            "ok": self.ok,
            "error": self.error,
            "killed": self.killed,
            "reader_exit": self.reader_exit,
            "load": summary(self.load) if self.load else None,
            "messages_per_second": round(self.messages_per_second, 1),
            "mb_per_second": round(self.mb_per_second, 2),
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
            "reconciliation": self.report.as_dict() if self.report else None,
            "sample": self.sample,
            "rage_replay": self.rage_replay,
            "addresses": self.addresses,
        }


def show(screen: Screen, outcome: Outcome, *, as_json: bool) -> None:
    """Prints the outcome."""
    if as_json:
        print(json.dumps(outcome.as_dict(), indent=2, default=str), flush=True)
        return
    console = screen.console
    if outcome.report is not None:
        console.print(report_table(outcome.report))
        failures = outcome.report.failures()
        if failures:
            console.print(failures, markup=False)
    if outcome.sample:
        console.print(_sample_table(outcome.sample))
    if outcome.load is not None and outcome.report is not None:
        load = outcome.load
        screen.line(
            f"{load.messages} messages ({load.segments} segments, {load.duplicates} sent twice, {load.rejects} "
            f"malformed, {load.size_bytes / 1e6:.0f} MB) in {outcome.seconds['ingest']:.1f} s: "
            f"{outcome.messages_per_second:.0f} messages/s, {outcome.mb_per_second:.1f} MB/s"
        )
        screen.line(", ".join(f"{name} {seconds:.1f} s" for name, seconds in outcome.seconds.items()))
    if outcome.rage_replay:
        screen.line(f"a replay with rage clicks: {outcome.rage_replay} (--keep prints the address where it plays)")
    if outcome.error:
        screen.line(f"error: {outcome.error}")
    screen.line(
        "every message is accounted for in every sink" if outcome.ok else "FAILED: some checks failed, see above"
    )


def _sample_table(rows: list[tuple[Any, ...]]) -> Table:
    table = Table(title=f"{SAMPLE_TITLE}, from ClickHouse", title_justify="left")
    for heading in ("page", "rage clicks", "dead clicks", "replays"):
        table.add_column(heading, justify="left" if heading == "page" else "right")
    for row in rows:
        table.add_row(*(str(value) for value in row))
    return table
