"""Generates pages of docs/, the import table of ARCHITECTURE.md, the list of reader settings that workers know,
and the Kubernetes alert rules.

`python -m tools.documents` writes them; `--check` lists stale ones and exits with 1 if there are any.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import click
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ingest.cli.main import main as command_line
from ingest.core.parse.rules import REASONS, WARNINGS
from ingest.observe.metric_table import DEFINITIONS as READER
from ingest.settings import Settings
from tasks.loading import allowed, number
from tasks.observe.meters import Definition
from tasks.observe.metric_table import DEFINITIONS as WORKER
from tasks.settings import ENV_PREFIX
from tasks.settings import Settings as FleetSettings
from tools import imports
from tools.proof_page import proof_page
from tools.sinks_page import sinks_page

ROOT = Path(__file__).parents[1]
MADE = "<!-- Made by `python -m tools.documents`. Change the code it comes from, not this page. -->"


def metrics_page() -> Iterator[str]:
    """docs/metrics.md."""
    yield "# Metrics"
    yield (
        "Readers and workers serve their metrics at `/metrics` (REPLAYS_HTTP_PORT, "
        "REPLAYS_WORKER_HTTP_PORT). REPLAYS_METRICS_DOGSTATSD also sends them to DogStatsD under the dotted "
        "name, with labels as tags. Prometheus names have underscores instead of dots, and counters end in "
        "`_total`. Equal histogram values of one batch are sent to DogStatsD once, where Prometheus counts "
        "each."
    )
    yield "## Reader"
    yield from _metrics_table(READER)
    yield "## Worker"
    yield from _metrics_table(WORKER)
    yield (
        "Product metrics (sizes, rage clicks, hydration errors and other content of recordings) are written "
        "by the sink `datadog`, from the rows of a batch."
    )


def _metrics_table(definitions: Iterable[Definition]) -> Iterator[str]:
    lines = ["| name | kind | unit | labels | description |", "| --- | --- | --- | --- | --- |"]
    for one in definitions:
        labels = ", ".join(f"`{label}`" for label in one.labels)
        names = "<br>".join(f"`{name}`" for name in (one.name, one.prometheus_names[0].removesuffix("_bucket")))
        lines.append(f"| {names} | {one.kind} | {one.unit} | {labels} | {one.help} |")
    yield "\n".join(lines)


def settings_page() -> Iterator[str]:
    """docs/settings.md."""
    yield "# Settings"
    yield (
        "Set each as an environment variable, or as a key (lower case, without `REPLAYS_`) in the TOML file "
        "named by REPLAYS_SETTINGS_FILE. Environment variables override the file. Units are in the names. "
        "Values out of range and unknown REPLAYS_* names prevent startup; the error message lists what is "
        "allowed. `replays-ingest check` tests the settings against the servers."
    )
    shared = list(FleetSettings.model_fields.items())
    own = [item for item in Settings.model_fields.items() if item[0] not in FleetSettings.model_fields]
    yield "## Reader"
    yield from _settings_table(own)
    yield "## Reader and workers"
    yield from _settings_table(shared)


def _settings_table(fields: Iterable[tuple[str, FieldInfo]]) -> Iterator[str]:
    lines = ["| name | default | allowed | description |", "| --- | --- | --- | --- |"]
    for name, field in fields:
        bounds = allowed(field).replace("|", "\\|")
        lines.append(
            f"| `{ENV_PREFIX}{name.upper()}` | {_default(field)} | {bounds} | {_cell(field.description or '')} |"
        )
    yield "\n".join(lines)


def _default(field: FieldInfo) -> str:
    value: Any = field.default
    if value is PydanticUndefined:
        return "none" if field.default_factory is None else "empty"
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if value is None or value in ("", ()):
        return "empty"
    if isinstance(value, tuple):
        value = ",".join(map(str, value))
    if isinstance(value, bool):
        value = str(value).lower()
    return f"`{number(value) if isinstance(value, int | float) and not isinstance(value, bool) else value}`"


def reasons_page() -> Iterator[str]:
    """docs/reasons.md."""
    yield "# Reasons"
    yield (
        "Names of rejects and warnings: labels of `replays_reader_rejects_total` and "
        "`replays_reader_warnings_total`, and the header `reason` of a dead letter. They are stable: a name "
        "never changes its meaning."
    )
    yield "## Rejects: the message becomes a dead letter and is not stored"
    yield _pairs("reason", REASONS.items())
    yield "## Warnings: the recording is stored, but some of its data is left out"
    yield _pairs("warning", WARNINGS.items())


def _pairs(title: str, pairs: Iterable[tuple[str, str]]) -> str:
    lines = [f"| {title} | meaning |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| `{name}` | {_cell(text)} |" for name, text in pairs)])


def commands_page() -> Iterator[str]:
    """docs/commands.md."""
    yield "# Commands"
    yield (
        "Every command reads the same settings (docs/settings.md). Exit codes: 0 success; 1 failure, "
        "explained by the last line; 2 wrong usage or settings; 3 the reader halted."
    )
    yield from _command("replays-ingest", command_line)


def _command(path: str, command: click.Command) -> Iterator[str]:
    yield f"## {path}"
    context = click.Context(command, info_name=path)
    arguments = [p for p in command.params if isinstance(p, click.Argument)]
    usage = " ".join([path, *(p.make_metavar(context) for p in arguments)])
    yield inspect.cleandoc(command.help or "").replace("\b\n", "")
    yield f"`{usage}`"
    if command.epilog:
        yield re.sub(r"^Example: (.*)$", r"Example: `\1`", command.epilog)
    options = [p for p in command.params if isinstance(p, click.Option)]
    records = [record for option in options if (record := option.get_help_record(context))]
    if records:
        yield "\n".join(f"- `{names}`: {_cell(text)}" for names, text in records)
    if isinstance(command, click.Group):
        for name, child in sorted(command.commands.items()):
            yield from _command(f"{path} {name}", child)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


PAGES: dict[str, Callable[[], Iterator[str]]] = {
    "docs/metrics.md": metrics_page,
    "docs/settings.md": settings_page,
    "docs/reasons.md": reasons_page,
    "docs/commands.md": commands_page,
    "docs/sinks.md": sinks_page,
    "docs/proof-tables.md": proof_page,
}
READER_SETTINGS = "tasks/reader_settings.py"
ALERT_RULES = "deploy/kubernetes/alerts.yaml"


# Generated parts of hand-written pages: page -> name -> text.
PARTS: dict[str, dict[str, Callable[[], str]]] = {"ARCHITECTURE.md": {"imports": imports.table}}


def reader_settings() -> str:
    """tasks/reader_settings.py."""
    names = sorted(Settings.model_fields.keys() - FleetSettings.model_fields.keys())
    lines = [
        '"""The names of the settings that only the reader has, so that workers know them too.',
        "",
        "Made by `python -m tools.documents`. Change ingest/settings.py, not this file.",
        '"""',
        "",
        "from __future__ import annotations",
        "",
        "READER_SETTINGS = frozenset(",
        "    (",
        *(f'        "{name}",' for name in names),
        "    )",
        ")",
    ]
    return "\n".join(lines) + "\n"


def alert_rules() -> str:
    """deploy/kubernetes/alerts.yaml: the Prometheus rules as a PrometheusRule object. The Helm chart renders the
    same; generating it here means that changing a rule does not require helm.
    """
    rules = (ROOT / "deploy" / "prometheus" / "alerts.yml").read_text()
    lines = [
        "# Made by `python -m tools.documents`. Change deploy/prometheus/alerts.yml, not this file.",
        "apiVersion: monitoring.coreos.com/v1",
        "kind: PrometheusRule",
        "metadata:",
        "  name: replays-ingest",
        "  labels:",
        "    app.kubernetes.io/name: replays-ingest",
        "    app.kubernetes.io/component: alerts",
        "spec:",
        *(f"  {line}" if line else "" for line in rules.splitlines()),
    ]
    return "\n".join(lines) + "\n"


def rendered() -> dict[str, str]:
    """The path and text of each generated page."""
    pages = {path: "\n\n".join([MADE, *page()]) + "\n" for path, page in PAGES.items()}
    pages[READER_SETTINGS] = reader_settings()
    pages[ALERT_RULES] = alert_rules()
    for path, parts in PARTS.items():
        pages[path] = (ROOT / path).read_text()
        for name, make in parts.items():
            pages[path] = _with_part(pages[path], name, make())
    return pages


def _with_part(page: str, name: str, text: str) -> str:
    """Replaces the text between the two marker comments. Raises ValueError if a marker is missing."""
    begin, end = f"<!-- {name}: made by `python -m tools.documents` -->\n", f"<!-- end of {name} -->"
    before, _, rest = page.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"the page has no part {name!r} between {begin.strip()!r} and {end!r}")
    return f"{before}{begin}{text}\n{end}{after}"


def stale() -> list[str]:
    """Paths of pages that differ from what the code generates."""
    return [
        path
        for path, text in rendered().items()
        if not (ROOT / path).exists() or (ROOT / path).read_text() != text
    ]


def main(arguments: list[str]) -> int:
    """Writes or checks the pages. Returns the exit code."""
    old = stale()
    if "--check" in arguments:
        for path in old:
            print(f"{path} is stale: run python -m tools.documents", file=sys.stderr)
        return 1 if old else 0
    pages = rendered()
    for path in old:
        (ROOT / path).write_text(pages[path])
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
