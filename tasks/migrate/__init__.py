"""Creates the ClickHouse schema, the BigQuery tables, the bucket and the topics.

Migrations are idempotent and safe to run concurrently: existing objects are kept, missing objects are added, and
nothing is dropped or narrowed. Each step returns one line about what it did (or, in a dry run, would do).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tasks.errors import SinkError
from tasks.migrate.bigquery import migrate_tables
from tasks.migrate.clickhouse import migrate_schema
from tasks.migrate.gcs import migrate_bucket
from tasks.migrate.kafka import migrate_topics
from tasks.settings import Settings
from tasks.sinks.clickhouse import errors as clickhouse_errors
from tasks.sinks.dead_letter import errors as kafka_errors
from tasks.sinks.google import errors as google_errors
from tasks.sinks.outcome import Failure
from tasks.wire import SinkName


def migrate(settings: Settings, *, dry_run: bool = False, topics: bool = False) -> Iterator[str]:
    """Yields one line per step. `topics`: also creates the input topic, for development.

    Disabled sinks are skipped. Raises SinkError, whose message states what to do.
    """
    steps: dict[SinkName, tuple[Callable[[], Iterator[str]], Callable[[BaseException], Failure]]] = {
        SinkName.CLICKHOUSE: (lambda: migrate_schema(settings, dry_run=dry_run), clickhouse_errors.classify),
        SinkName.BIGQUERY: (lambda: migrate_tables(settings, dry_run=dry_run), google_errors.classify),
        SinkName.GCS: (lambda: migrate_bucket(settings, dry_run=dry_run), google_errors.classify),
        SinkName.DEAD_LETTER: (
            lambda: migrate_topics(settings, dry_run=dry_run, source=topics),
            kafka_errors.classify,
        ),
    }
    for name, (step, sort) in steps.items():
        if name not in settings.sinks:
            continue
        try:
            for line in step():
                # The step also creates topics that are unrelated to dead letters.
                label = "kafka" if name is SinkName.DEAD_LETTER else name
                yield f"{label}: {'would ' if dry_run and not line.startswith('=') else ''}{line.lstrip('= ')}"
        except SinkError:
            raise
        except Exception as error:
            raise sort(error).about(name).error() from error
