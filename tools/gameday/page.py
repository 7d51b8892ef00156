"""Generates the tables of docs/gameday.md from the --json output of a game day.

    python -m tools.gameday.page .gameday/gameday.json [FILE ...]

Each file is one run, with its own table. The tables replace the text between the two markers in the page; the rest
of the page is written by hand.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "gameday.md"
BEGIN, END = "<!-- the run: begin -->\n", "<!-- the run: end -->\n"


def cell(text: str) -> str:
    """Returns the text, escaped for a table cell."""
    return text.replace("|", "\\|").replace("\n", " ")


def code(text: str) -> str:
    """Formats an expression or a command for a table cell. GitHub renders escaped pipes without the backslash."""
    return f"`{cell(text)}`"


def step(text: str) -> str:
    """Formats a step: a command as code, any other action as text."""
    return code(text) if text.startswith(("replays-ingest ", "redis-cli ")) else cell(text)


def seconds(number: float | None) -> str:
    return "never" if number is None else f"{number:.1f}"


def spent(played: Mapping[str, Any]) -> str:
    """Formats the number of late segments and the number of durable segments; the result is empty for runs
    recorded before the objective existed.
    """
    return f"{played['late_segments']:,} of {played['segments']:,}" if "segments" in played else ""


def faults(played: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yields the table of faults, with one row per fault."""
    heads = (
        "#",
        "fault",
        "alert, runbook",
        "fired after, s",
        "steps",
        "fix confirmed by",
        "gone, s",
        "committed, s",
    )
    yield f"| {' | '.join((*heads, 'over 30 s'))} |"
    yield f"| {' | '.join('---' for _ in (*heads, 'over 30 s'))} |"
    for number, each in enumerate(played, 1):
        section = f"[{each['alert']}](runbook.md#{each['alert'].lower()})"
        others = ", ".join(each["others"])
        steps = [step(text) for text in each["steps"]]
        seen = [cell(text) for text in each["seen"]]
        trouble = each["trouble"].splitlines()[:1]
        cells = (
            str(number),
            cell(each["fault"]),
            section + (f"; also {others}" if others else ""),
            seconds(each["fired_seconds"]),
            "; ".join(steps),
            "; ".join(seen + [f"**not fixed:** {cell(text)}" for text in trouble]),
            seconds(each["resolved_seconds"]),
            seconds(each["drained_seconds"]),
            spent(each),
        )
        yield f"| {' | '.join(cells)} |"


def panels(asked: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yields the table of panels. Each row shows how many expressions a panel has, how many of them returned data,
    and how many series and values they returned.
    """
    yield "| panel | expressions | with data | series | values |"
    yield "| --- | --- | --- | --- | --- |"
    for title, group in groupby(asked, key=lambda each: str(each["panel"])):
        rows = list(group)
        series, values = (sum(each[name] for each in rows) for name in ("series", "values"))
        answered = sum(1 for each in rows if each["values"])
        yield f"| {cell(title)} | {len(rows)} | {answered} | {series:,} | {values:,} |"


def run(result: Mapping[str, Any]) -> Iterator[str]:
    """Describes one run, its faults, and the reconciliation of its topic."""
    verdict = "Every fault raised its alert and was fixed." if result["ok"] else "**Some faults were not fixed.**"
    yield "### Run"
    yield ""
    yield (
        f"{len(result['played'])} faults in {result['seconds']:.0f} s, {result['rate']:g} messages per second, "
        f"Kafka: {result['kafka']}, rule times divided by {result['factor']:g}. {verdict}"
    )
    if result["error"]:
        yield f"\nError: {cell(result['error'].splitlines()[0])}"
    yield ""
    yield from faults(result["played"])
    yield ""
    if account := result["reconciled"].strip():
        yield "Result of `replays-ingest reconcile` at the end, for the whole topic and every sink:"
        yield ""
        yield "```"
        yield from (line.rstrip() for line in account.splitlines())
        yield "```"
        yield ""


def best_panels(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns each expression once, with the results of the run in which it had the most values."""
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for each in (each for result in results for each in result["panels"]):
        key = (each["panel"], each["expression"])
        if key not in best or each["values"] > best[key]["values"]:
            best[key] = each
    return list(best.values())


def page(results: Sequence[Mapping[str, Any]]) -> str:
    """Returns the text between the markers."""
    asked = best_panels(results)
    empty = [each for each in asked if not each["values"]]
    lines = [
        *(line for result in results for line in run(result)),
        "### The dashboard's panels",
        "",
        f"{len(asked)} expressions were queried over the whole run; {len(asked) - len(empty)} had data.",
        "",
        *panels(asked),
        *(f"\nNo data: {each['panel']}: {code(each['expression'])}" for each in empty),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """The command line."""
    results = [json.loads(Path(name).read_text()) for name in sys.argv[1:]]
    before, rest = PAGE.read_text().split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(before + BEGIN + page(results) + END + after)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
