"""Every file follows the import rules, and the checker reports violations."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.kit.paths import ROOT
from tools import imports
from tools.imports import TABLE, WHOLE_ROW, module_of, row_of, sources, table, violations


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


PRODUCT_FILES = [path for path in sources() if not name_of(path).startswith("benchmarks/")]


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_a_file_imports_only_what_its_package_may(path: Path) -> None:
    """A file imports only what the table allows for its package; the table lists our own and third-party
    packages.
    """
    assert violations(name_of(path), path.read_text()) == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        # Third-party packages in a forbidden place
        ("tasks/sinks/clickhouse/sink.py", "import celery"),
        ("tasks/sinks/clickhouse/sink.py", "import celery.app as app"),
        ("tasks/sinks/clickhouse/sink.py", "from celery import shared_task"),
        ("tasks/sinks/gcs/sink.py", "import redis"),
        ("tasks/sinks/datadog.py", "from redis.exceptions import RedisError"),
        ("tasks/sinks/base.py", "import kombu"),
        ("tasks/sinks/gcs/sink.py", "import clickhouse_connect"),
        ("tasks/sinks/bigquery/sink.py", "import confluent_kafka"),
        ("tasks/sinks/new_sink.py", "import requests"),
        ("tasks/kafka/ranges.py", "import celery"),
        ("tasks/wire.py", "import redis"),
        ("tasks/flush.py", "from redis import Redis"),
        ("tasks/settings.py", "import celery"),
        ("ingest/core/pipeline.py", "import confluent_kafka"),
        ("ingest/core/parse/rows.py", "import orjson"),
        ("ingest/core/model.py", "import pydantic"),
        ("ingest/reader/runtime.py", "from confluent_kafka import Consumer"),
        ("ingest/reader/process.py", "import redis"),
        ("ingest/reader/parsing/inline.py", "import celery"),
        ("ingest/observe/metrics.py", "from redis.exceptions import RedisError"),
        ("ingest/settings.py", "import redis"),
        ("ingest/web/server.py", "import flask"),
        ("ingest/cli/main.py", "import confluent_kafka"),
        ("tasks/flush.py", "import not_in_the_table"),
        # Standard library modules that the core must not import
        ("ingest/core/pipeline.py", "import time"),
        ("ingest/core/ledger.py", "from os import environ"),
        ("ingest/core/retry.py", "import random"),
        ("ingest/core/cut_record.py", "import logging"),
        ("ingest/core/parse/scan.py", "import socket"),
        ("ingest/core/packing.py", "from uuid import uuid4"),
        ("ingest/core/model.py", "import importlib"),
        # First-party modules that these modules must not import
        ("tasks/flush.py", "from ingest.core import model"),
        ("tasks/flush.py", "import ingest"),
        ("tasks/sinks/gcs/sink.py", "from tasks import breaker"),
        ("tasks/sinks/gcs/sink.py", "from tasks.staging import Staging"),
        ("tasks/kafka/options.py", "from tasks.sinks.outcome import Outcome"),
        ("ingest/core/pipeline.py", "from ingest.settings import Settings"),
        ("ingest/core/pipeline.py", "from ingest import observe"),
        ("ingest/core/pipeline.py", "from tasks.settings import Settings"),
        ("ingest/core/model.py", "from tasks import staging"),
        ("ingest/observe/metrics.py", "from ingest.reader.kafka import KafkaSource"),
        ("ingest/reader/process.py", "from ingest.operate.status import collect"),
        ("ingest/reader/runtime.py", "from ingest.reader.dispatch import Dispatcher"),
        ("ingest/reader/kafka.py", "from tasks.settings import Settings"),
        ("ingest/operate/check.py", "from ingest.web.operator_service import OperatorService"),
        ("ingest/operate/check.py", "from ingest.testing.messages import recording"),
        ("ingest/local/stack.py", "from tools import documents"),
        ("ingest/web/server.py", "from ingest.cli.common import as_json"),
        ("ingest/reader/process.py", "from tests.kit import batches"),
        ("ingest/reader/process.py", "import benchmarks.common"),
        ("ingest/newcomer.py", "from ingest.core import model"),
        ("ingest/reader/process.py", "from ingest.newcomer import thing"),
        ("ingest/newcomer.py", "import redis"),
        ("ingest/reader/process.py", "from . import kafka"),
        ("ingest/reader/process.py", "from .kafka import KafkaSource"),
    ],
)
@pytest.mark.parametrize(
    "form",
    [
        "{line}",
        "import re\n\ndef later():\n    {line}",
        "class Thing:\n    {line}",
        "try:\n    {line}\nexcept ImportError:\n    pass",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    {line}",
    ],
    ids=["top", "function", "class", "try", "typing"],
)
def test_a_planted_import_is_reported(path: str, line: str, form: str) -> None:
    """A forbidden import is found anywhere in the file and reported with its line."""
    text = form.format(line=line)
    at = next(number for number, part in enumerate(text.splitlines(), 1) if line in part)

    (found,) = violations(path, text)

    assert found.startswith(f"{path}:{at}: ")


@pytest.mark.parametrize(
    "call", ["import_module('redis')", "importlib.import_module('redis.exceptions')", "__import__('redis')"]
)
def test_an_import_by_name_at_run_time_is_reported(call: str) -> None:
    """A call to `import_module` or `__import__` is reported if the module name is a string literal."""
    (found,) = violations("tasks/sinks/gcs/sink.py", f"thing = {call}")

    assert "redis" in found


@pytest.mark.parametrize("call", ["open('x')", "print('x')", "input()", "eval('1')"])
def test_an_effect_in_the_core_is_reported(call: str) -> None:
    """A call that is forbidden in the core is allowed in other packages."""
    assert len(violations("ingest/core/pipeline.py", f"x = {call}")) == 1
    assert violations("ingest/operate/top.py", f"x = {call}") == []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (
            "tasks/sinks/clickhouse/sink.py",
            "from tasks.sinks.google.errors import sort\nimport clickhouse_connect.driver",
        ),
        ("tasks/sinks/__init__.py", "def build():\n    from tasks.sinks.gcs.sink import GcsSink"),
        (
            "ingest/core/parse/rows.py",
            "from ingest.core import model\nfrom collections import abc\nimport msgspec.json",
        ),
        ("ingest/reader/kafka.py", "import confluent_kafka\nfrom ingest.core import events as on\nimport time"),
        (
            "ingest/operate/status.py",
            "from ingest.observe.fleet import FleetWatch\nfrom tasks.staging import Staging",
        ),
        ("tools/documents.py", "import anything.at_all\nfrom ingest.cli.main import main"),
    ],
)
def test_allowed_imports_are_not_reported(path: str, text: str) -> None:
    """Imports of the file's own package, of packages below it, and of its libraries are not reported."""
    assert violations(path, text) == []


def test_the_table_has_no_unused_permission() -> None:
    """The table has no unused permission: each library of each row is imported where it is allowed."""
    used = {
        (row_of(module), imported.name.split(".")[0], module)
        for path in sources()
        for module in [module_of(name_of(path))]
        for imported in imports.imports(path.read_text())
    }
    unused = [
        (package.modules, part, library)
        for row, package in enumerate(TABLE)
        for part, libraries in (package.libraries or {}).items()
        for library in libraries
        if not any(
            row == theirs and library == name and (part == WHOLE_ROW or part in module)
            for theirs, name, module in used
        )
    ]

    assert unused == []


def test_architecture_shows_the_same_table() -> None:
    """ARCHITECTURE.md contains the same table, which `python -m tools.documents` writes."""
    assert table() in (ROOT / "ARCHITECTURE.md").read_text()


@pytest.mark.parametrize("path", PRODUCT_FILES, ids=name_of)
def test_a_file_begins_with_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert not tree.body or ast.get_docstring(tree), path


@pytest.mark.parametrize("path", PRODUCT_FILES, ids=name_of)
def test_only_settings_read_the_environment(path: Path) -> None:
    """Only one module per package reads the environment, so that all inputs of the package are visible."""
    if path.name in ("settings.py", "loading.py") or name_of(path).startswith(
        ("ingest/local/", "tools/", "ingest/cli/")
    ):
        return
    text = path.read_text()
    assert "os.environ" not in text
    assert "os.getenv" not in text
