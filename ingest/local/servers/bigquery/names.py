"""Table names, for clients and for the storage engine."""

from __future__ import annotations

from dataclasses import dataclass

from ingest.local.servers.bigquery.rows import identifier


@dataclass(frozen=True, slots=True)
class TableName:
    """The full name of a table."""

    project: str
    dataset: str
    table: str

    def __str__(self) -> str:
        return f"{self.project}:{self.dataset}.{self.table}"

    @property
    def sql(self) -> str:
        """The name of the table in the storage engine."""
        return f"{identifier(f'{self.project}:{self.dataset}')}.{identifier(self.table)}"
