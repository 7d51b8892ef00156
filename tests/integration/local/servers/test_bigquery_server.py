"""The BigQuery server, tested with the unmodified client library."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from google.api_core.exceptions import BadRequest, Conflict, GoogleAPICallError, NotFound
from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery

from ingest.local.servers.bigquery.inserts import InsertIds
from ingest.local.servers.bigquery.names import TableName
from ingest.local.servers.bigquery.rows import BadValue, Field, row_of
from ingest.local.servers.bigquery.server import BigQuery
from ingest.local.servers.processes import Children

NOW = datetime.now(UTC).replace(microsecond=0)
SCHEMA = [
    bigquery.SchemaField("id", "STRING", "REQUIRED"),
    bigquery.SchemaField("n", "INT64"),
    bigquery.SchemaField("at", "TIMESTAMP", "REQUIRED"),
    bigquery.SchemaField("facts", "JSON"),
    bigquery.SchemaField("urls", "STRING", "REPEATED"),
    bigquery.SchemaField("geo", "RECORD", fields=[bigquery.SchemaField("city", "STRING")]),
]


def client_of(endpoint: str) -> bigquery.Client:
    return bigquery.Client(
        project="proj", credentials=AnonymousCredentials(), client_options={"api_endpoint": endpoint}
    )


@pytest.fixture
def client(bigquery_endpoint: str) -> bigquery.Client:
    return client_of(bigquery_endpoint)


@pytest.fixture
def dataset(client: bigquery.Client, fresh_name: Callable[[str], str]) -> str:
    return str(client.create_dataset(fresh_name("ds")).dataset_id)


@pytest.fixture
def table(client: bigquery.Client, dataset: str) -> str:
    made = bigquery.Table(f"proj.{dataset}.events", schema=SCHEMA)
    made.time_partitioning = bigquery.TimePartitioning(field="at")
    made.clustering_fields = ["id"]
    client.create_table(made)
    return f"proj.{dataset}.events"


def row(**values: Any) -> dict[str, Any]:
    return {"id": "a", "n": 1, "at": NOW.isoformat(), **values}


def test_a_table_keeps_schema_partitioning_and_clustering(client: bigquery.Client, table: str):
    """`get` returns the schema, partitioning and clustering with which the table was created."""
    found = client.get_table(table)

    assert [(field.name, field.mode) for field in found.schema] == [(field.name, field.mode) for field in SCHEMA]
    assert found.time_partitioning.field == "at"
    assert found.clustering_fields == ["id"]


def test_creating_twice_is_a_conflict_and_missing_is_not_found(client: bigquery.Client, dataset: str, table: str):
    """Creating a table twice gives 409, and a missing table gives 404.

    The client's options exists_ok and not_found_ok depend on these codes.
    """
    with pytest.raises(Conflict, match="Already Exists"):
        client.create_table(bigquery.Table(table, schema=SCHEMA))
    client.create_table(bigquery.Table(table, schema=SCHEMA), exists_ok=True)
    with pytest.raises(NotFound):
        client.get_table(f"proj.{dataset}.other")
    with pytest.raises(NotFound):
        client.insert_rows_json(f"proj.{dataset}.other", [row()])
    with pytest.raises(BadRequest, match="still in use"):
        client.delete_dataset(dataset)
    client.delete_dataset(dataset, delete_contents=True)
    client.delete_dataset(dataset, not_found_ok=True)


def test_values_are_returned_with_their_types(client: bigquery.Client, table: str):
    """Values have the right types in a listing of rows and in a query."""
    sent = row(facts=json.dumps({"a": [1]}), urls=["u", "v"], geo={"city": "Wien"})
    assert client.insert_rows_json(table, [sent]) == []

    expected = ("a", 1, NOW, {"a": [1]}, ["u", "v"], {"city": "Wien"})
    assert [found.values() for found in client.list_rows(table)] == [expected]
    assert [found.values() for found in client.query(f"SELECT * FROM `{table}`").result()] == [expected]


def test_an_insert_id_is_stored_once_within_the_window(client: bigquery.Client, table: str):
    """Rows with the same insert id are stored once, across requests and within a request; rows without an id are
    always stored.
    """
    assert client.insert_rows_json(table, [row(), row()], row_ids=["x", "x"]) == []
    assert client.insert_rows_json(table, [row(), row()], row_ids=["x", "y"]) == []
    assert client.get_table(table).num_rows == 2

    assert client.insert_rows_json(table, [row()], row_ids=[None]) == []
    assert client.insert_rows_json(table, [row()], row_ids=[None]) == []
    assert client.get_table(table).num_rows == 4


def test_an_insert_id_is_forgotten_after_the_window():
    """An insert id is forgotten after about a minute, because the service does not guarantee a longer period."""
    ids, key = InsertIds(window_seconds=60), InsertIds.key(TableName("p", "d", "t"), "x")

    ids.add([key], now=100.0)

    assert ids.seen(key, now=160.0)
    assert not ids.seen(key, now=160.1)


def test_one_bad_row_stops_all_others(client: bigquery.Client, table: str):
    """If one row is bad, nothing is stored; the bad row is named, and the good rows are reported as `stopped`."""
    errors = client.insert_rows_json(table, [row(), row(n="many"), row()], row_ids=["1", "2", "3"])

    reasons = {error["index"]: error["errors"][0]["reason"] for error in errors}
    assert reasons == {0: "stopped", 1: "invalid", 2: "stopped"}
    assert errors[1]["errors"][0]["location"] == "n"
    assert client.get_table(table).num_rows == 0
    # The insert ids of rows that were not stored are not kept.
    assert client.insert_rows_json(table, [row()], row_ids=["1"]) == []
    assert client.get_table(table).num_rows == 1


def test_skipping_invalid_rows_stores_the_good_ones(client: bigquery.Client, table: str):
    """With skipInvalidRows the good rows are stored, and the errors name only the bad rows."""
    errors = client.insert_rows_json(table, [row(id=None), row(), row(more=1)], skip_invalid_rows=True)

    assert [error["index"] for error in errors] == [0, 2]
    assert client.get_table(table).num_rows == 1
    assert client.insert_rows_json(table, [row(more=1)], ignore_unknown_values=True) == []


@pytest.mark.parametrize(
    ("values", "location"),
    [
        ({"n": "x"}, "n"),
        ({"n": 1.5}, "n"),
        ({"n": True}, "n"),
        ({"n": 2**63}, "n"),
        ({"n": [1]}, "n"),
        ({"id": None}, "id"),
        ({"id": "\ud800"}, "id"),
        ({"at": "yesterday"}, "at"),
        ({"at": 123123123123}, "at"),
        ({"at": "1980-01-01T00:00:00Z"}, "at"),
        ({"facts": {"an": "object"}}, "facts"),
        ({"facts": "{not json"}, "facts"),
        ({"urls": [None]}, "urls"),
        ({"geo": "Wien"}, "geo"),
        ({"geo": {"country": "AT"}}, "geo.country"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_a_row_that_does_not_fit_is_invalid_at_its_column(
    client: bigquery.Client, table: str, values: dict[str, Any], location: str
):
    """If a row does not fit the schema, the server reports the row as invalid and names the column."""
    errors = client.insert_rows_json(table, [row(**values)])

    assert [error["errors"][0]["reason"] for error in errors] == ["invalid"]
    assert errors[0]["errors"][0]["location"] == location


@pytest.mark.parametrize(
    ("kind", "given", "stored"),
    [
        ("INTEGER", "12", 12),
        ("INTEGER", 3.0, 3),
        ("FLOAT", "2.5", 2.5),
        ("BOOLEAN", "true", True),
        ("STRING", 7, "7"),
        ("TIMESTAMP", 1.5, 1_500_000),
        ("TIMESTAMP", "1970-01-01 00:00:01 UTC", 1_000_000),
        ("TIMESTAMP", "1970-01-01T01:00:01.25+01:00", 1_250_000),
        ("TIMESTAMP", "1970-01-01 00:00:01-8", 28_801_000_000),
        ("TIMESTAMP", "1970-01-02", 86_400_000_000),
        ("TIMESTAMP", "1.5", 1_500_000),
        ("BYTES", "aGk=", b"hi"),
    ],
)
def test_values_are_parsed_like_the_service_does(kind: str, given: Any, stored: Any):
    """The server accepts numbers as strings, seconds as timestamps, and all notations of time zones."""
    fields = (Field("x", kind, "NULLABLE"),)

    assert row_of(fields, {"X": given}, ignore_unknown=False) == {"x": stored}
    with pytest.raises(BadValue):
        row_of(fields, {"x": [given]}, ignore_unknown=False)


def test_queries_support_parameters_views_and_dml(client: bigquery.Client, dataset: str, table: str):
    """The server runs DML statements and queries with aggregates, array parameters or a deduplicating view.

    The columns of a result have the same names as in the service.
    """
    rows = [
        row(id=f"r{number % 3}", n=number, at=(NOW - timedelta(hours=number)).isoformat()) for number in range(9)
    ]
    assert client.insert_rows_json(table, rows) == []
    view = bigquery.Table(f"proj.{dataset}.events_exact")
    view.view_query = (
        f"SELECT * FROM `{table}` WHERE TRUE QUALIFY ROW_NUMBER() OVER (PARTITION BY id ORDER BY n) = 1"
    )
    client.create_table(view)
    config = bigquery.QueryJobConfig(
        query_parameters=[
            bigquery.ArrayQueryParameter("ids", "STRING", ["r0", "r1"]),
            bigquery.ScalarQueryParameter("since", "TIMESTAMP", NOW - timedelta(hours=4)),
        ]
    )

    sql = f"SELECT id, SUM(n) AS total FROM {dataset}.events WHERE id IN UNNEST(@ids) AND at >= @since"
    found = client.query(f"{sql} GROUP BY id ORDER BY id", job_config=config).result()
    assert [tuple(entry) for entry in found] == [("r0", 3), ("r1", 5)]
    counted = client.query_and_wait(f"SELECT COUNT(*), COUNTIF(n > 0) FROM {dataset}.events_exact")
    assert [dict(entry) for entry in counted] == [{"f0_": 3, "f1_": 2}]
    assert client.query(f"DELETE FROM {dataset}.events WHERE n > 4").result().num_dml_affected_rows == 4
    for sql in ("SELEC 1", f"SELECT nope FROM {dataset}.events", "SELECT * FROM read_csv('/etc/passwd')"):
        with pytest.raises(BadRequest):
            client.query(sql).result()


def test_long_results_are_paged(client: bigquery.Client, table: str):
    """Long results of listings and of queries are returned in pages."""
    rows = [row(id=str(number)) for number in range(250)]
    assert client.insert_rows_json(table, rows) == []

    assert [found["id"] for found in client.list_rows(table, page_size=100)] == [str(n) for n in range(250)]
    result = client.query(f"SELECT id FROM `{table}`").result(page_size=100)
    assert result.total_rows == 250
    assert len({found["id"] for found in result}) == 250


def test_a_schema_grows_and_does_not_shrink(client: bigquery.Client, table: str):
    """NULLABLE columns can be added, and are NULL in existing rows; no column can be removed."""
    client.insert_rows_json(table, [row()])
    found = client.get_table(table)
    found.schema = [*found.schema, bigquery.SchemaField("extra", "STRING")]
    found = client.update_table(found, ["schema"])

    assert client.insert_rows_json(table, [row(extra="e")]) == []
    assert [entry["extra"] for entry in client.list_rows(table)] == [None, "e"]
    found.schema = SCHEMA[:3]
    with pytest.raises(BadRequest, match="does not match"):
        client.update_table(found, ["schema"])


def test_requests_have_the_limits_of_the_service(client: bigquery.Client, table: str):
    """A request is limited to 10 MB and 50,000 rows."""
    with pytest.raises(GoogleAPICallError, match="exceeds the limit"):
        client.insert_rows_json(table, [row(facts=json.dumps("x" * 11_000_000))])
    with pytest.raises(BadRequest, match="Too many rows"):
        client.insert_rows_json(table, [{"id": "a"}] * 50_001)


def test_rows_survive_a_kill(children: Children, tmp_path: Path):
    """Every acknowledged row is present after a SIGKILL."""
    server = BigQuery(children, tmp_path / "bigquery")
    server.start()
    client = client_of(server.address)
    client.create_dataset("ds")
    client.create_table(bigquery.Table("proj.ds.events", schema=SCHEMA))
    for number in range(20):
        assert client.insert_rows_json("proj.ds.events", [row(n=number)]) == []

    server.restart(kill=True)

    assert client_of(server.address).get_table("proj.ds.events").num_rows == 20
