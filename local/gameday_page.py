"""The tables of docs/gameday.md, from what a game day wrote with --json.

    python -m local.gameday_page .gameday/gameday.json

Whatever stands between the page's two marks is replaced; the words around them are written by hand.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "gameday.md"
BEGIN, END = "<!-- the run: begin -->\n", "<!-- the run: end -->\n"


def cell(text: str) -> str:
    """Text that a table's cell can hold."""
    return text.replace("|", "\\|").replace("\n", " ")


def code(text: str) -> str:
    """An expression or a command in a cell. GitHub shows a backslash before the bar as the bar alone."""
    return f"`{cell(text)}`"


def step(text: str) -> str:
    """What was typed looks like that; what was done some other way is said."""
    return code(text) if text.startswith(("replays-ingest ", "redis-cli ")) else cell(text)


def seconds(number: float | None) -> str:
    return "never" if number is None else f"{number:.1f}"


def faults(played: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """One row a fault."""
    yield "| # | fault | alert, runbook | fired after, s | steps | seen mended by | gone, s | committed, s |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
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
            "; ".join(seen + [f"**not mended:** {cell(text)}" for text in trouble]),
            seconds(each["resolved_seconds"]),
            seconds(each["drained_seconds"]),
        )
        yield f"| {' | '.join(cells)} |"


def panels(asked: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """One row a panel: how many of its expressions answered, with how much."""
    yield "| panel | expressions | with data | series | values |"
    yield "| --- | --- | --- | --- | --- |"
    for title, group in groupby(asked, key=lambda each: str(each["panel"])):
        of = list(group)
        series, values = (sum(each[name] for each in of) for name in ("series", "values"))
        answered = sum(1 for each in of if each["values"])
        yield f"| {cell(title)} | {len(of)} | {answered} | {series:,} | {values:,} |"


def page(result: Mapping[str, Any]) -> str:
    """All that stands between the marks."""
    asked = result["panels"]
    empty = [each for each in asked if not each["values"]]
    verdict = "Every fault was told of and mended." if result["ok"] else "**Not everything went as it should.**"
    lines = [
        f"{len(result['played'])} faults in {result['seconds']:.0f} s, {result['messages']:,} messages at "
        f"{result['rate']:g} a second, Kafka: {result['kafka']}, times of the rules divided by "
        f"{result['factor']:g}. {verdict}",
        "",
        *faults(result["played"]),
        "",
        "What `replays-ingest reconcile` said in the end, the whole topic against every sink:",
        "",
        "```",
        *(line.rstrip() for line in result["reconciled"].strip().splitlines()),
        "```",
        "",
        "### The dashboard's panels",
        "",
        f"{len(asked)} expressions were asked over the run, {len(asked) - len(empty)} had data.",
        "",
        *panels(asked),
        *(f"\nNo data: {each['panel']}: {code(each['expression'])}" for each in empty),
    ]
    if result["error"]:
        lines[1:1] = ["", f"Error: {cell(result['error'].splitlines()[0])}"]
    return "\n".join(lines) + "\n"


def main() -> int:
    """python -m local.gameday_page FILE"""
    result = json.loads(Path(sys.argv[1]).read_text())
    before, rest = PAGE.read_text().split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(before + BEGIN + page(result) + END + after)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
