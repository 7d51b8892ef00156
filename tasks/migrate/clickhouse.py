"""Creates the ClickHouse schema: applies each file `NNNN_name.sql` once, in order. `schema_migrations` lists
them.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from tasks.errors import PermanentSinkError
from tasks.migrate.step import SCHEMA
from tasks.settings import Settings
from tasks.sinks.clickhouse import sink as clickhouse_sink

_MIGRATIONS_TABLE = """
CREATE TABLE IF NOT EXISTS schema_migrations {on_cluster}
(version UInt32, name String, checksum String, applied_at DateTime DEFAULT now())
ENGINE = {replicated}ReplacingMergeTree ORDER BY version
"""


@dataclass(frozen=True, slots=True)
class Migration:
    """One schema file. `checksum` detects later edits to its text."""

    version: int
    name: str
    statements: tuple[str, ...]
    checksum: str


def migrations() -> list[Migration]:
    """Returns the files `NNNN_name.sql`, in order. Statements end with a semicolon at the end of a line."""
    found = []
    for path in sorted((SCHEMA / "clickhouse").glob("*.sql")):
        text = path.read_text()
        statements = tuple(part.strip() for part in text.split(";\n") if part.strip())
        checksum = hashlib.sha256(text.encode()).hexdigest()[:16]
        found.append(Migration(int(path.name[:4]), path.stem, statements, checksum))
    return found


def rendered(statement: str, cluster: str) -> str:
    """Returns the statement, adapted for one node or for a cluster with replicated tables."""
    on_cluster = f"ON CLUSTER '{cluster}'" if cluster else ""
    return statement.replace("{on_cluster}", on_cluster).replace("{replicated}", "Replicated" if cluster else "")


def migrate_schema(settings: Settings, *, dry_run: bool) -> Iterator[str]:
    """Creates the database, then applies every migration that `schema_migrations` does not list."""
    database, cluster = settings.clickhouse_database, settings.clickhouse_cluster
    with contextlib.closing(clickhouse_sink.client(settings, database="system")) as server:
        names = {row[0] for row in server.query("SELECT name FROM databases").result_rows}
        if database not in names:
            yield f"create database {database}"
            if not dry_run:
                server.command(rendered(f"CREATE DATABASE IF NOT EXISTS {database} {{on_cluster}}", cluster))
        tables = server.query(
            "SELECT name FROM tables WHERE database = {database:String}", parameters={"database": database}
        )
        has_record = ("schema_migrations",) in {tuple(row) for row in tables.result_rows}
        applied: dict[int, str] = {}
        if has_record:
            rows = server.query(f"SELECT version, checksum FROM {database}.schema_migrations FINAL").result_rows
            applied = {int(version): str(checksum) for version, checksum in rows}
    known = migrations()
    for migration in known:
        if applied.get(migration.version, migration.checksum) != migration.checksum:
            raise PermanentSinkError(
                f"clickhouse: {migration.name}.sql was edited after it was applied to {database}; "
                "put the old text back and add a file with the change",
                configuration=True,
            )
    missing = [migration for migration in known if migration.version not in applied]
    if not missing:
        yield f"= schema of {database} is at version {known[-1].version}, nothing to do"
        return
    if dry_run:
        yield from (f"apply {migration.name} to {database}" for migration in missing)
        return
    with contextlib.closing(clickhouse_sink.client(settings)) as server:
        server.command(rendered(_MIGRATIONS_TABLE, cluster))
        for migration in missing:
            for statement in migration.statements:
                server.command(rendered(statement, cluster))
            server.command(
                "INSERT INTO schema_migrations (version, name, checksum) "
                "SELECT {version:UInt32}, {name:String}, {checksum:String}",
                parameters={
                    "version": migration.version,
                    "name": migration.name,
                    "checksum": migration.checksum,
                },
            )
            yield f"apply {migration.name} to {database}"
