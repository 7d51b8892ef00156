"""Generates docs/bigquery-contract.md from `result.json`, which `make bigquery-contract` writes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tools.bigquery_contract import appends, rest
from tools.bigquery_contract.servers import EMULATOR
from tools.bigquery_contract.target import Operation

RESULT = Path(__file__).with_name("result.json")
AS_DOCUMENTED = "as documented"
NOT_RUN = "not run"


def contract_page() -> Iterator[str]:
    """Yields the paragraphs and tables of docs/bigquery-contract.md."""
    yield from page_of(json.loads(RESULT.read_text()))


def page_of(result: Mapping[str, Any]) -> Iterator[str]:
    """Yields the paragraphs and tables of the page that shows the given result."""
    servers, found = result["servers"], result["operations"]
    yield "# Contract of BigQuery's API"
    yield (
        "This page lists what the BigQuery sink, `migrate`, `erase` and `reconcile` need from the API, as Google "
        "documents it, and what three servers do: our emulator (`ingest/local/servers/bigquery/`) and two "
        "third-party servers. `make bigquery-contract` runs the comparison. It installs the third-party servers "
        "into separate environments (`.contract/`), and needs the package index and Python 3.13. `make test` "
        "includes the part for our emulator. "
        "[Decision 040](decisions/040-bigquery-contract.md) draws the conclusions."
    )
    yield f"The last run was on {result['date']}."
    yield _table(
        ("server", "version", "operations as documented"),
        ((name, version, _count(found, name)) for name, version in servers.items()),
    )
    yield (
        "A cell describes how a server differs from the documentation. Error texts are not compared. The real "
        "service was not tested: the three servers are compared only with its documentation."
    )
    yield (
        f"The {EMULATOR} ran with a streaming buffer of 90 minutes, as in the service; without "
        "`--streaming-buffer-seconds`, as in `local up` and `demo`, the emulator allows a DELETE of rows as soon "
        "as they are streamed."
    )
    yield "## REST"
    yield _operations(rest.OPERATIONS, found, tuple(servers))
    yield "## Storage Write API"
    yield _operations(appends.OPERATIONS, found, tuple(servers))
    yield "## What is not compared"
    yield (
        "Permissions are not compared, because none of the three servers has access control; `403 accessDenied` "
        "is tested with scripted responses (`tests/integration/tasks/sinks/test_sink_bigquery.py`). Quotas, "
        "billing, the delay until a new table or column is known throughout the service, and the expiry of "
        "streams are not compared, because none of the three servers has them. The default stream, streams of "
        "other types, load jobs and the Storage Read API are not compared, because this system does not use them."
    )


def _count(found: Mapping[str, Mapping[str, str]], name: str) -> str:
    judged = [entry[name] for entry in found.values() if name in entry]
    return f"{judged.count('')} of {len(judged)}"


def _operations(operations: Iterable[Operation], found: Mapping[str, Any], names: tuple[str, ...]) -> str:
    rows = []
    for chosen in operations:
        cells = (_cell(found.get(chosen.name, {}).get(name, NOT_RUN) or AS_DOCUMENTED) for name in names)
        rows.append((f"`{chosen.name}`<br>{_cell(chosen.what)}", "; ".join(chosen.pages), *cells))
    return _table(("operation", "pages of the documentation", *names), rows)


def _table(titles: tuple[str, ...], rows: Iterable[Iterable[str]]) -> str:
    lines = [titles, ("---",) * len(titles), *(tuple(row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    """Returns the text with markup and column separators escaped."""
    for sign in "\\`*_<>[]":
        text = text.replace(sign, f"\\{sign}")
    return text.replace("|", "\\|")
