"""Writes what the documents say because the code says it: pages of docs/, the import table of ARCHITECTURE.md,
the reader's names that the fleet knows, and the alert rules as an object of Kubernetes.

`python -m tools.documents` writes them, `--check` tells which are stale and exits with 1 if any is.
"""

from __future__ import annotations

import inspect
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
from tools.sinks_page import sinks_page

ROOT = Path(__file__).parents[1]
MADE = "<!-- Made by `python -m tools.documents`. Change the code it comes from, not this page. -->"


def metrics_page() -> Iterator[str]:
    """docs/metrics.md."""
    yield "# Metrics"
    yield (
        "The reader serves them at `/metrics` (REPLAYS_HTTP_PORT), a worker too (REPLAYS_WORKER_HTTP_PORT). With "
        "REPLAYS_METRICS_DOGSTATSD they also go to DogStatsD, under the dotted name; Prometheus has underscores "
        "instead of dots, and `_total` after a counter. Labels are tags there. DogStatsD hears of a histogram's "
        "value once where Prometheus counts it several times (equal values of one batch)."
    )
    yield "## Reader"
    yield from _metrics_table(READER)
    yield "## Worker"
    yield from _metrics_table(WORKER)
    yield (
        "What the *recordings* say (sizes, rage clicks, hydration errors, ...) are product metrics: the sink "
        "`datadog` writes those, from the rows of a batch."
    )


def _metrics_table(definitions: Iterable[Definition]) -> Iterator[str]:
    lines = ["| name | kind | unit | labels | what it is |", "| --- | --- | --- | --- | --- |"]
    for one in definitions:
        labels = ", ".join(f"`{label}`" for label in one.labels)
        names = "<br>".join(f"`{name}`" for name in (one.name, one.prometheus_names[0].removesuffix("_bucket")))
        lines.append(f"| {names} | {one.kind} | {one.unit} | {labels} | {one.help} |")
    yield "\n".join(lines)


def settings_page() -> Iterator[str]:
    """docs/settings.md."""
    yield "# Settings"
    yield (
        "Each is a variable of the environment, or a key (lower case, without `REPLAYS_`) of the TOML file that "
        "REPLAYS_SETTINGS_FILE names; the environment wins. Units are in the names. A value out of its range, and "
        "an unknown REPLAYS_* name, stop the start with a message that says what is right. "
        "`replays-ingest check` looks at how they fit together, and at the servers."
    )
    shared = list(FleetSettings.model_fields.items())
    own = [item for item in Settings.model_fields.items() if item[0] not in FleetSettings.model_fields]
    yield "## Reader"
    yield from _settings_table(own)
    yield "## Reader and workers"
    yield from _settings_table(shared)


def _settings_table(fields: Iterable[tuple[str, FieldInfo]]) -> Iterator[str]:
    lines = ["| name | default | allowed | what it is |", "| --- | --- | --- | --- |"]
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
        "Stable names: labels of `replays_reader_rejects_total` and `replays_reader_warnings_total`, and the "
        "header `reason` of a dead letter. A name is never given another meaning."
    )
    yield "## Rejects: the message becomes a dead letter, nothing of it is stored"
    yield _pairs("reason", REASONS.items())
    yield "## Warnings: the recording is stored, a part of what it says is not"
    yield _pairs("warning", WARNINGS.items())


def _pairs(title: str, pairs: Iterable[tuple[str, str]]) -> str:
    lines = [f"| {title} | what is wrong |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| `{name}` | {_cell(text)} |" for name, text in pairs)])


def commands_page() -> Iterator[str]:
    """docs/commands.md."""
    yield "# Commands"
    yield (
        "Every command reads the same settings (docs/settings.md). Exit codes: 0 done; 1 it failed, the last line "
        "says why; 2 wrong usage or wrong settings; 3 the reader had halted."
    )
    yield from _command("replays-ingest", command_line)


def _command(path: str, command: click.Command) -> Iterator[str]:
    yield f"## {path}"
    context = click.Context(command, info_name=path)
    arguments = [p for p in command.params if isinstance(p, click.Argument)]
    usage = " ".join([path, *(p.make_metavar(context) for p in arguments)])
    yield inspect.cleandoc(command.help or "").replace("\b\n", "")
    yield f"`{usage}`"
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
}
READER_SETTINGS = "tasks/reader_settings.py"
ALERT_RULES = "deploy/kubernetes/alerts.yaml"


# Parts of pages that are written by hand: page -> name -> text.
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
    """deploy/kubernetes/alerts.yaml: the rules of Prometheus in the object that the Prometheus operator reads.

    The Helm chart makes the same of them; this needs no helm, so whoever changes a rule needs none.
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
    """Each page's path and its text."""
    pages = {path: "\n\n".join([MADE, *page()]) + "\n" for path, page in PAGES.items()}
    pages[READER_SETTINGS] = reader_settings()
    pages[ALERT_RULES] = alert_rules()
    for path, parts in PARTS.items():
        pages[path] = (ROOT / path).read_text()
        for name, make in parts.items():
            pages[path] = _with_part(pages[path], name, make())
    return pages


def _with_part(page: str, name: str, text: str) -> str:
    """The page with the text between the two comments that name it. Raises ValueError when one is missing."""
    begin, end = f"<!-- {name}: made by `python -m tools.documents` -->\n", f"<!-- end of {name} -->"
    before, _, rest = page.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"the page has no part {name!r} between {begin.strip()!r} and {end!r}")
    return f"{before}{begin}{text}\n{end}{after}"


def stale() -> list[str]:
    """The pages that do not say what the code says."""
    return [
        path
        for path, text in rendered().items()
        if not (ROOT / path).exists() or (ROOT / path).read_text() != text
    ]


def main(arguments: list[str]) -> int:
    """Writes or checks. Returns the exit code."""
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
