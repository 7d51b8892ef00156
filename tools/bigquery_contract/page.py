"""Generates docs/bigquery-contract.md from `result.json`, which `make bigquery-contract` writes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tools.bigquery_contract import appends, rest
from tools.bigquery_contract.servers import OURS
from tools.bigquery_contract.target import Operation

RESULT = Path(__file__).with_name("result.json")
SAME = "as documented"
NOT_RUN = "not run"


def contract_page() -> Iterator[str]:
    """The whole page."""
    yield from page_of(json.loads(RESULT.read_text()))


def page_of(result: Mapping[str, Any]) -> Iterator[str]:
    """The page of a result."""
    servers, found = result["servers"], result["operations"]
    yield "# Contract of BigQuery's API"
    yield (
        "What the BigQuery sink, `migrate`, `erase` and `reconcile` need of the API, as Google documents it, and "
        "what three servers do: our emulator (`ingest/local/servers/bigquery/`), and two that others wrote. "
        "`make bigquery-contract` runs it. It installs the two into environments of their own (`.contract/`), and "
        "needs the package index and Python 3.13. The part for our emulator is in `make test`. "
        "[Decision 040](decisions/040-bigquery-contract.md) draws the conclusions."
    )
    yield f"The last run was on {result['date']}."
    yield _table(
        ("server", "version", "operations as documented"),
        ((name, version, _count(found, name)) for name, version in servers.items()),
    )
    yield (
        "A cell says what a server does instead. Error texts are not compared. The real service was not asked: "
        "this compares servers with its documentation."
    )
    yield (
        f"The {OURS} ran with a streaming buffer of 90 minutes, as the service has one; without "
        "`--streaming-buffer-seconds`, as in `local up` and `demo`, it deletes streamed rows at once."
    )
    yield "## REST"
    yield _operations(rest.OPERATIONS, found, tuple(servers))
    yield "## Storage Write API"
    yield _operations(appends.OPERATIONS, found, tuple(servers))
    yield "## What it does not judge"
    yield (
        "Permissions: no server of the three has access control, so `403 accessDenied` is tested with scripted "
        "responses (`tests/integration/tasks/sinks/test_sink_bigquery.py`). Quotas, billing, the delay until a "
        "new table or column is known to every server, and the expiry of streams, which none of them has. The "
        "default stream and streams of other types, load jobs and the Storage Read API, which this system does "
        "not use."
    )


def _count(found: Mapping[str, Mapping[str, str]], name: str) -> str:
    judged = [entry[name] for entry in found.values() if name in entry]
    return f"{judged.count('')} of {len(judged)}"


def _operations(operations: Iterable[Operation], found: Mapping[str, Any], names: tuple[str, ...]) -> str:
    rows = []
    for chosen in operations:
        cells = (_cell(found.get(chosen.name, {}).get(name, NOT_RUN) or SAME) for name in names)
        rows.append((f"`{chosen.name}`<br>{_cell(chosen.what)}", "; ".join(chosen.pages), *cells))
    return _table(("operation", "pages of the documentation", *names), rows)


def _table(titles: tuple[str, ...], rows: Iterable[Iterable[str]]) -> str:
    lines = [titles, ("---",) * len(titles), *(tuple(row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    """Plain text: no markup and no column separators."""
    for sign in "\\`*_<>[]":
        text = text.replace(sign, f"\\{sign}")
    return text.replace("|", "\\|")
