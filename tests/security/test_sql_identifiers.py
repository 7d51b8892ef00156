"""No identifier from outside reaches SQL as text.

Values are passed as parameters. Everything else in a statement is listed here with its source, so that the tests
fail for a new interpolation until it has been reviewed. Malicious identifiers are passed to the functions that
build SQL from input.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ingest.local.launch import settings_of
from ingest.operate.erase.rows import Rows
from ingest.operate.reconcile import presence
from ingest.web.model import Filter, NotFound, replay_id_of
from ingest.web.replays import _conditions
from tasks.errors import SinkError
from tasks.sinks import build
from tasks.wire import Row, SinkName
from tests.kit.paths import ROOT

MALICIOUS_NAME = "replays` SELECT secret FROM replay_segments --') OR 1=1 --"
SQL = re.compile(
    r"\b(AND|SELECT|INSERT INTO|ALTER TABLE|DELETE|CREATE|DROP|TRUNCATE|OPTIMIZE|FROM|WHERE|FORMAT)\b"
)
CHECKED_FOLDERS = ("tasks", "ingest")
EXCLUDED_FOLDER = "ingest/local/"  # The embedded servers run the SQL that they receive.

# The expressions that are interpolated into SQL, by file, except literal numbers.
CONSTANTS = {"TABLE", "PROJECT_ID", "PROBE_UUID", "RELEASES_MAX", "SEGMENTS_MAX", "4 * SEGMENTS_MAX"}
FRAGMENTS = {"where", "having", "_SELECTED_REPLAYS", "_SELECTED_ROWS", "_FACTS", "self._which", "SEARCHED_TEXT"}
"""Our own text with placeholders, built next to the statement."""
INTEGERS = re.compile(r"^(number|limit \+ 1|int\(\w+\)|max\(0, .*\)|min\(UINT32_MAX, .*\))$")
KNOWN_EXPRESSIONS: dict[str, set[str]] = {
    # `self._project_id` and `self._replay_id` are results of int() and UUID(); a test below verifies this. `named`
    # is one of two constant strings in its function.
    "ingest/operate/erase/rows.py": {"self._project_id", "self._replay_id", "table", "named", "REPLAYS_MAX"},
    "ingest/operate/reconcile/presence.py": {
        *("replays", "events", "numbers(...)", "uuids(...)"),
        # `self._dataset` comes from settings; the other three are constants that describe our own tables.
        *("self._dataset", "table", "columns", "grouped"),
    },
    "ingest/operate/reconcile/recordings.py": {"numbers(...)", "uuids(...)"},
    "ingest/operate/backfill/selection.py": {
        *("replays", "uuid", "numbers(...)", "uuids(...)"),
        "CONDITIONS['replay_segments'](list(keys.values()), 0)",  # The tests below verify these expressions.
    },
    # `self._alive` and `where` are built from integers; all other values are constants of the module.
    "ingest/operate/retention/rows.py": {"self._alive", "_SORT", "table", "PROJECTS_MAX"},
    # `source` is a FROM clause with a condition, or the encoded rows as one escaped literal.
    "ingest/operate/shadow/contents.py": {"offsets", "self._table", "columns", "source"},
    # These are settings that are validated with a pattern, and constants that describe our own tables.
    "ingest/operate/erase/facts.py": {
        "what",
        "settings.bigquery_project",
        "settings.bigquery_dataset",
        "table",
    },
    "ingest/operate/backfill/facts.py": {"columns", "self._table", "what"},
    # These are our own columns with placeholders.
    "ingest/web/replays.py": {"clicked", "column"},
    "ingest/web/segments.py": {"CLICK_CONDITION", "TAP_CONDITION", "ERRORS_MAX"},
    "tasks/migrate/bigquery.py": {"table.project", "table.dataset_id", "table.table_id"},
    "tasks/migrate/clickhouse.py": {"database"},
    # `table` is one of TABLES_BY_SINK, which a test below verifies. `partition` is an ID that ClickHouse returned.
    "tasks/sinks/clickhouse/server.py": {"table"},
    "tasks/sinks/clickhouse/table.py": {"names"},
    "tasks/sinks/clickhouse/probe.py": {"partition", "failure.message", "left"},
}


def interpolations(path: Path) -> Iterator[tuple[int, str]]:
    """Returns (line, expression) for everything that is interpolated into an SQL string."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
            if SQL.search(text):
                for part in node.values:
                    if isinstance(part, ast.FormattedValue):
                        yield node.lineno, _shortened(part.value)
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mod):
            for side, other in ((node.left, node.right), (node.right, node.left)):
                literal = isinstance(side, ast.Constant) and isinstance(side.value, str) and SQL.search(side.value)
                if literal and not isinstance(other, ast.Constant | ast.JoinedStr):
                    yield node.lineno, _shortened(other)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
            source = node.func.value
            if isinstance(source, ast.Constant) and SQL.search(str(source.value)):
                yield from ((node.lineno, _shortened(given)) for given in node.args)


def _shortened(expression: ast.expr) -> str:
    if isinstance(expression, ast.Call) and ast.unparse(expression.func) in ("numbers", "uuids"):
        return f"{ast.unparse(expression.func)}(...)"
    return ast.unparse(expression)


def unknown(path: Path, name: str) -> list[str]:
    allowed = CONSTANTS | FRAGMENTS | KNOWN_EXPRESSIONS.get(name, set())
    return [
        f"{name}:{line}: {expression}"
        for line, expression in interpolations(path)
        if expression not in allowed and not INTEGERS.match(expression)
    ]


def test_every_interpolation_into_sql_is_known():
    """Every interpolation into SQL is listed above with its source.

    A new interpolation must become a parameter or be listed.
    """
    found = []
    for folder in CHECKED_FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if not name.startswith(EXCLUDED_FOLDER):
                found += unknown(path, name)

    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        'f"SELECT * FROM {table}"',
        '"SELECT count() FROM " + name',
        '"DELETE FROM %s" % table',
        '"DROP TABLE {}".format(name)',
    ],
)
def test_a_new_interpolation_is_found(source: str, tmp_path: Path):
    """An interpolation into SQL is found in whatever form it is written."""
    path = tmp_path / "new.py"
    path.write_text(f"query({source})\n")

    assert len(unknown(path, "tasks/new.py")) == 1


@pytest.mark.parametrize("sink", [SinkName.CLICKHOUSE, SinkName.BIGQUERY])
def test_a_row_of_a_planted_table_is_not_sent(sink: SinkName):
    """A staged row of an unknown table is not sent, because its table is first compared with the list of our
    tables.
    """
    settings = settings_of(
        {"REPLAYS_CLICKHOUSE_URL": "http://127.0.0.1:9", "REPLAYS_BIGQUERY_ENDPOINT": "http://127.0.0.1:9"}
    )
    made = build(sink, settings)

    with pytest.raises(SinkError, match="no table"):
        made.write([Row(MALICIOUS_NAME, "id", b"{}", 0)], "token", 5.0)


def test_erase_takes_a_replay_and_a_project_and_no_sql():
    """`erase` parses the replay id as a UUID and the project id as an integer before it uses them in SQL
    statements.
    """
    settings = settings_of({})

    with pytest.raises(ValueError, match="UUID"):
        Rows(settings, 7, MALICIOUS_NAME)
    with pytest.raises(ValueError, match="invalid literal"):
        Rows(settings, MALICIOUS_NAME, "0" * 32)  # type: ignore[arg-type]


@pytest.mark.parametrize("table", sorted(presence.CONDITIONS))
@pytest.mark.parametrize("field", ["project_id", "replay_id", "event_hash", "segment_id", "org_id", "timestamp"])
def test_reconcile_puts_no_planted_identity_into_sql(table: str, field: str):
    """No statement of `reconcile` contains any part of a planted identity."""
    identity = "0123456789abcdef0123456789abcdef"
    row: dict[str, Any] = {"project_id": 7, "segment_id": 0, "org_id": 1, "timestamp": 5}
    row |= {"replay_id": identity, "event_hash": identity, field: MALICIOUS_NAME}

    try:
        made = presence.CONDITIONS[table]([row], 60)
    except ValueError:
        return
    assert "secret" not in made


def test_pages_use_parameterized_queries():
    """The pages pass all of a visitor's input as query parameters."""
    where, having, given = _conditions(Filter(release=MALICIOUS_NAME, text=MALICIOUS_NAME))

    assert "secret" not in where + having
    assert given["release"] == given["text"] == MALICIOUS_NAME
    with pytest.raises(NotFound):
        replay_id_of(MALICIOUS_NAME)
