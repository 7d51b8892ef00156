"""docs/troubleshooting.md quotes what the programs print."""

from __future__ import annotations

import re

from tests.kit.paths import ROOT

PRINTED_BY_OTHERS = {"command not found", "(90 s old)", "in flight", "parked", "open"}


def test_each_symptom_is_printed_by_the_code():
    """Every quotation in the first column of the page occurs in the code."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    rows = re.findall(r"^\| ([^|]+) \|", page, flags=re.MULTILINE)
    quoted = {text for row in rows for text in re.findall(r"`([^`]+)`", row)} - PRINTED_BY_OTHERS
    sources = "\n".join(path.read_text() for room in ("ingest", "tasks") for path in (ROOT / room).rglob("*.py"))
    commands = {text for text in quoted if text in ("top", "local up", "local down", "load")}

    assert len(quoted - commands) >= 10
    assert [text for text in sorted(quoted - commands) if text not in sources] == []
