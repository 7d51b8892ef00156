"""Translates GoogleSQL statements and their parameters for DuckDB, and finds the tables that statements name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from ingest.local.servers.bigquery.errors import bad_request
from ingest.local.servers.bigquery.names import TableName
from ingest.local.servers.bigquery.rows import CANONICAL, READERS


def translated(sql: str, project: str, dataset: str) -> tuple[str, Any]:
    """Returns the statement in DuckDB's dialect, and its syntax tree.

    Raises ApiError for anything but a single statement.
    """
    try:
        trees = [tree for tree in sqlglot.parse(sql, read="bigquery") if tree is not None]
    except SqlglotError as error:
        raise bad_request(f"Syntax error: {_plain(error)}", "invalidQuery", "query") from error
    if len(trees) != 1:
        raise bad_request(f"One statement at a time is supported here, not {len(trees)}.", "invalidQuery", "query")
    tree = trees[0]
    supported = (exp.Query, exp.Insert, exp.Update, exp.Delete, exp.Merge, exp.TruncateTable, exp.Alter)
    if not isinstance(tree, supported):
        raise bad_request(f"{tree.key.upper()} statements are not supported here.", "invalidQuery", "query")
    original: Any = tree.copy()
    for node in list(tree.find_all(exp.In)):
        _unnest_to_list(node)
    if isinstance(tree, exp.Select):
        _name_columns(tree)
    for table in list(tree.find_all(exp.Table)):
        name = _table_name(table, project, dataset)
        if name is None:
            continue
        if not table.alias and isinstance(tree, exp.Query):
            table.set("alias", exp.TableAlias(this=exp.to_identifier(name.table, quoted=True)))
        table.set("this", exp.to_identifier(name.table, quoted=True))
        table.set("db", exp.to_identifier(f"{name.project}:{name.dataset}", quoted=True))
        table.set("catalog", None)
    try:
        return tree.sql(dialect="duckdb"), original
    except SqlglotError as error:
        raise bad_request(_plain(error), "invalidQuery", "query") from error


def column_changes(tree: exp.Alter) -> list[tuple[str, str]]:
    """Returns (column, new type) of ALTER TABLE ... ALTER COLUMN ... SET DATA TYPE. Raises ApiError for other
    changes."""
    changes = []
    for action in tree.args["actions"]:
        kind = action.args.get("dtype") if isinstance(action, exp.AlterColumn) else None
        if kind is None:
            raise bad_request("ALTER supports only SET DATA TYPE here.", "invalidQuery", "query")
        changes.append((action.name, kind.sql("bigquery").upper()))
    return changes


def _plain(error: SqlglotError) -> str:
    """Returns the text without terminal escape codes."""
    return re.sub(r"\x1b\[\d*m", "", str(error)).replace("\n", " ")


def table_names(tree: Any, project: str, dataset: str) -> set[TableName]:
    """Returns the tables that a statement refers to, except those that it defines in a WITH clause."""
    found = (_table_name(table, project, dataset) for table in tree.find_all(exp.Table))
    return {name for name in found if name is not None}


def _table_name(table: exp.Table, project: str, dataset: str) -> TableName | None:
    """Returns None for a name that a WITH clause defines, and for functions."""
    if not isinstance(table.this, exp.Identifier):
        return None
    if not table.db:
        scope = table.parent
        while scope is not None:
            with_ = scope.args.get("with_") or scope.args.get("with")
            if with_ is not None and any(cte.alias.lower() == table.name.lower() for cte in with_.expressions):
                return None
            scope = scope.parent
        if not dataset:
            raise bad_request(
                f'Table "{table.name}" must be qualified with a dataset (e.g. dataset.table).',
                "invalidQuery",
                "query",
            )
    return TableName(table.catalog or project, table.db or dataset, table.name)


def _name_columns(tree: exp.Select) -> None:
    """Names unnamed columns f0_, f1_ ... in order."""
    nameless = 0
    for place, column in enumerate(tree.expressions):
        if not isinstance(column, exp.Column | exp.Alias | exp.Star | exp.Dot):
            tree.expressions[place].replace(exp.alias_(column.copy(), f"f{nameless}_", quoted=True))
            nameless += 1


def _unnest_to_list(node: exp.In) -> None:
    """Rewrites `x IN UNNEST(list)` as `list_contains(list, x)`. If `list` is a parameter, DuckDB cannot infer its
    type from the SQL that sqlglot generates for the original expression.
    """
    unnest = node.args.get("unnest")
    if isinstance(unnest, exp.Unnest) and len(unnest.expressions) == 1:
        node.replace(exp.func("LIST_CONTAINS", unnest.expressions[0].copy(), node.this.copy()))


def query_parameters(parameters: Sequence[Mapping[str, Any]]) -> dict[str, Any] | list[Any] | None:
    """Returns the typed values of `@name` or `?` parameters.

    Raises ApiError for a value that does not fit its type.
    """
    if not parameters:
        return None
    values = [
        (
            parameter.get("name"),
            _parameter(parameter.get("parameterType", {}), parameter.get("parameterValue", {})),
        )
        for parameter in parameters
    ]
    if all(name for name, _ in values):
        return {str(name): value for name, value in values}
    return [value for _, value in values]


def _parameter(kind: Mapping[str, Any], value: Mapping[str, Any]) -> Any:
    name = str(kind.get("type", "STRING")).upper()
    name = CANONICAL.get(name, name)
    if name == "ARRAY":
        return [_parameter(kind.get("arrayType", {}), item) for item in value.get("arrayValues") or ()]
    if name == "RECORD":
        given = value.get("structValues") or {}
        return {
            entry["name"]: _parameter(entry["type"], given.get(entry["name"], {}))
            for entry in kind.get("structTypes") or ()
        }
    plain = value.get("value")
    if plain is None:
        return None
    if name not in READERS:
        raise bad_request(f"Parameters of type {name} are not supported here.", "invalidQuery", "query")
    try:
        found = READERS[name](plain)
    except (ValueError, ArithmeticError):
        raise bad_request(f"Invalid {name} parameter: {plain}", "invalidQuery", "query") from None
    if name == "TIMESTAMP":
        return datetime.fromtimestamp(found // 1_000_000, UTC).replace(microsecond=found % 1_000_000)
    if name == "DATETIME":
        return datetime.fromtimestamp(found // 1_000_000, UTC).replace(microsecond=found % 1_000_000, tzinfo=None)
    return found
