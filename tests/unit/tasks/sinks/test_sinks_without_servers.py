"""Tests the parts of sinks that need no socket: construction, memory sinks, request bodies, packets, Kafka
properties, migration files.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator

import certifi
import pytest

from tasks.errors import PermanentSinkError, TransientSinkError
from tasks.kafka.options import kafka_options, producer_options, without_secrets
from tasks.migrate.clickhouse import migrations, rendered
from tasks.settings import Settings
from tasks.sinks import build, check_all, memory
from tasks.sinks.bigquery.sink import REQUEST_BYTES_MAX, body_of, requests
from tasks.sinks.gcs.sink import crc32c
from tasks.sinks.per_process import PerProcessValue
from tasks.wire import Blob, DeadLetter, Item, Metric, Row, SinkName


@pytest.fixture(autouse=True)
def empty_memory() -> Iterator[None]:
    memory.reset()
    yield
    memory.reset()


def row(number: int, json_bytes: bytes = b"{}") -> Row:
    return Row("t", f"id-{number}", json_bytes, number)


def test_every_sink_can_be_built_and_opens_nothing() -> None:
    """Every sink can be built while nothing listens at the configured addresses, because no sink connects before
    its first write.
    """
    settings = Settings(clickhouse_url="http://127.0.0.1:1", gcs_endpoint="http://127.0.0.1:1")

    assert [build(name, settings).name for name in SinkName] == list(SinkName)
    with pytest.raises(ValueError, match="nowhere"):
        build("nowhere", settings)


def test_there_is_one_memory_sink_per_name_and_process() -> None:
    """There is one memory sink per name and process, so a test can read what an eager task wrote."""
    settings = Settings(sink_kind="memory")

    assert build("gcs", settings) is build("gcs", settings) is memory.sink("gcs")
    assert [checked.ok for checked in check_all(settings)] == [True] * len(SinkName)


def test_memory_sinks_keep_one_copy_per_identity() -> None:
    items: list[Item] = [
        Blob("a", b"1", 0),
        row(1),
        Metric("c", "m", 1, ()),
        DeadLetter(None, b"v", (), 0),
    ]
    sink = memory.sink("gcs")

    sink.write(items, "token", 1)
    sink.write(items, "token", 1)

    assert sink.counts() == {"objects": 1, "rows of t": 1, "metrics": 2, "dead letters": 2}
    assert (sink.row_writes, sink.calls) == (2, [("token", 4), ("token", 4)])


def test_scripted_failures_store_what_they_declare() -> None:
    """A scripted sink that fails partially, then completely, and then succeeds stores exactly what the script
    declares.
    """
    sink = memory.sink("clickhouse")
    sink.fail(
        TransientSinkError("part", failed=(1,)),
        PermanentSinkError("all", failed=((0, "bad"),), all_refused=True),
        None,
    )

    kept = []
    for _ in range(3):
        with contextlib.suppress(TransientSinkError, PermanentSinkError):
            sink.write([row(1), row(2)], "token", 1)
        kept.append(sink.row_writes)

    assert kept == [1, 1, 3]


def test_poison_rows_are_always_refused() -> None:
    sink = memory.sink("bigquery")
    sink.refuse(lambda item: "poison" if item == row(2) else None)
    with pytest.raises(PermanentSinkError) as named:
        sink.write([row(1), row(2)], "token", 1)
    sink.refuse(lambda item: "poison" if item == row(2) else None, named=False)
    with pytest.raises(PermanentSinkError) as unnamed:
        sink.write([row(3), row(2)], "token", 1)

    assert named.value.failed == ((1, "poison"),)
    assert unnamed.value.failed is None
    assert sink.counts() == {"rows of t": 1}


def test_a_bigquery_body_is_json_assembled_from_row_bytes() -> None:
    """A BigQuery body assembled from row bytes is valid JSON, even if rows are memoryviews and ids contain
    quotes.
    """
    items = [row(1, b'{"a":1}'), Row("t", 'quo"te', memoryview(b'{"b":[2]}'), 2), row(3)]

    body = json.loads(body_of(items, [0, 1]))

    assert body["rows"] == [
        {"insertId": "id-1", "json": {"a": 1}},
        {"insertId": 'quo"te', "json": {"b": [2]}},
    ]
    assert (body["skipInvalidRows"], body["ignoreUnknownValues"]) == (True, False)


def test_bigquery_requests_are_cut_by_size_and_lose_nothing() -> None:
    """BigQuery requests are split by size, and no row is lost.

    A single row that is too large is sent alone, so that the server reports what is wrong with it.
    """
    items = [row(n, b"x" * size) for n, size in enumerate([4_000_000, 4_000_000, 4_000_000, 12_000_000, 10])]

    cut = list(requests(items, range(5)))

    assert cut == [[0, 1], [2], [3], [4]]
    assert len(body_of(items, [0, 1])) < REQUEST_BYTES_MAX


def test_a_checksum_is_the_same_for_bytes_and_views() -> None:
    """A bytes object and a memoryview of it have the same checksum, including for sizes above one chunk and at
    chunk boundaries.
    """
    for size in (0, 1, 2**20 - 1, 2**20, 2**20 + 1, 3 * 2**20):
        content = os.urandom(size)
        assert crc32c(content) == crc32c(memoryview(content))


def test_a_client_is_created_once_per_process_and_again_after_a_fork() -> None:
    """A client is created once per process; after a fork, the child neither uses nor closes the parent's
    client.
    """
    made: list[int] = []
    holder = PerProcessValue(lambda: made.append(os.getpid()) or object())
    first = holder.get()
    assert holder.get() is first

    child = os.fork()
    if child == 0:
        mine = holder.get() is not first and made == [os.getppid(), os.getpid()]
        os._exit(0 if mine else 1)
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    assert holder.take() is first
    assert holder.take() is None


def test_kafka_properties_come_from_the_settings_unless_an_operator_sets_them() -> None:
    settings = Settings(
        kafka_brokers="a:1,b:2",
        kafka_security_protocol="SASL_SSL",
        kafka_sasl_mechanism="SCRAM-SHA-512",
        kafka_sasl_username="user",
        kafka_sasl_password="hunter2",  # type: ignore[arg-type]
        kafka_ssl_ca_file=certifi.where(),  # type: ignore[arg-type]
        kafka_options={"client.id": "theirs", "sasl.oauthbearer.client.secret": "hunter3"},
    )

    options = kafka_options(settings)

    assert options["bootstrap.servers"] == "a:1,b:2"
    assert (options["security.protocol"], options["sasl.mechanism"]) == ("SASL_SSL", "SCRAM-SHA-512")
    assert (options["sasl.password"], options["ssl.ca.location"]) == ("hunter2", certifi.where())
    assert options["client.id"] == "theirs"
    assert "hunter" not in str(without_secrets(options))
    assert "hunter" not in repr(settings.kafka_sasl_password)


def test_sasl_properties_are_omitted_without_sasl() -> None:
    """Without SASL, the SASL properties are omitted, because librdkafka would warn about properties that have no
    effect.
    """
    assert not [name for name in kafka_options(Settings()) if name.startswith(("sasl.", "ssl."))]


def test_dead_letters_are_acknowledged_by_all_replicas_and_fit_the_queue() -> None:
    """Dead letters are acknowledged by all replicas, and the producer's queue is large enough for the largest
    message.
    """
    options = producer_options(Settings())

    assert (options["acks"], options["enable.idempotence"], options["statistics.interval.ms"]) == ("all", True, 0)
    assert options["queue.buffering.max.kbytes"] * 1024 >= options["message.max.bytes"]


def test_migrations_are_numbered_without_gaps_and_fit_one_node_and_a_cluster() -> None:
    """Migrations are numbered without gaps, and each statement can be repeated.

    If a cluster is named, each table is replicated.
    """
    found = migrations()

    assert [migration.version for migration in found] == list(range(1, len(found) + 1))
    for statement in (statement for migration in found for statement in migration.statements):
        alone, together = rendered(statement, ""), rendered(statement, "main")
        assert "IF NOT EXISTS" in alone
        assert not {"{", "}"} & set(alone + together)
        assert "ON CLUSTER 'main'" in together
        assert ("ENGINE = Replicated" in together) == ("ENGINE = " in alone)
