"""Operations of the REST API: tables, views, insertAll, queries, reading, deletion.

Each operation is compared with the pages of Google's documentation that its docstring names.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from google.cloud import bigquery

from tasks.sinks.bigquery.table import columns_of
from tools.bigquery_contract.target import NOW_SECONDS, PROJECT, TABLE, Target, expect, operation_of, row, written

REQUEST_BYTES_MAX = 10_000_000
INSERT_ID_CHARACTERS_MAX = 128
INSERT_ALL = "bigquery#tableDataInsertAllResponse"


# ---- tables and views


def create_and_get_a_table(target: Target) -> None:
    """A created table is returned with its columns, modes, partitioning and clustering.

    Page: Method: tables.insert; Method: tables.get.
    """
    target.create_dataset()
    parts = {"timePartitioning": {"type": "DAY", "field": "timestamp"}, "clustering": {"fields": ["project_id"]}}
    resource = target.resource(list(columns_of(TABLE).values()), parts)
    target.call("POST", f"/datasets/{target.dataset}/tables", resource).expect(200)

    found = target.call("GET", target.path()).expect(200).body
    expect(found.get("kind") == "bigquery#table", f"kind is {found.get('kind')}")
    expect(found.get("type") == "TABLE", f"type is {found.get('type')}")
    fields = [(entry["name"], entry.get("mode", "NULLABLE")) for entry in found["schema"]["fields"]]
    wanted = [(name, column.get("mode", "NULLABLE")) for name, column in columns_of(TABLE).items()]
    expect(fields == wanted, "columns or modes differ from those given")
    expect((found.get("timePartitioning") or {}).get("field") == "timestamp", "timePartitioning is not returned")
    expect((found.get("clustering") or {}).get("fields") == ["project_id"], "clustering is not returned")


def create_a_table_twice(target: Target) -> None:
    """Creating a second table of the same name fails with 409 duplicate.

    Page: HTTP status and error codes for BigQuery API.
    """
    target.create_table()
    resource = target.resource(list(columns_of(TABLE).values()))
    target.call("POST", f"/datasets/{target.dataset}/tables", resource).expect(409, "duplicate")


def get_a_missing_table(target: Target) -> None:
    """A request for a missing table or a missing dataset fails with 404 notFound.

    Page: HTTP status and error codes for BigQuery API.
    """
    target.call("GET", target.path()).expect(404, "notFound")
    target.create_dataset()
    target.call("GET", target.path()).expect(404, "notFound")


def add_a_nullable_column(target: Target) -> None:
    """A patch that adds a NULLABLE column is accepted; the column is NULL in existing rows and may have a value in
    new rows.

    Page: Modifying table schemas.
    """
    fields = target.create_table()["schema"]["fields"]
    target.stored(row(1))
    changed = {"schema": {"fields": [*fields, {"name": "extra", "type": "STRING", "mode": "NULLABLE"}]}}
    target.call("PATCH", target.path(), changed).expect(200)

    target.stored(row(2, extra="e"))
    found = target.query("SELECT extra FROM FACTS ORDER BY segment_id")
    expect(found == [(None,), ("e",)], f"the column has {found}")


def add_a_required_column(target: Target) -> None:
    """A patch that adds a REQUIRED column is refused.

    Page: Modifying table schemas.
    """
    fields = target.create_table()["schema"]["fields"]
    changed = {"schema": {"fields": [*fields, {"name": "extra", "type": "STRING", "mode": "REQUIRED"}]}}
    target.call("PATCH", target.path(), changed).expect(400)


def relax_a_required_column(target: Target) -> None:
    """A patch makes a REQUIRED column NULLABLE, and rows may then omit it.

    Page: Modifying table schemas.
    """
    fields = target.create_table()["schema"]["fields"]
    relaxed = [entry | {"mode": "NULLABLE"} if entry["name"] == "org_id" else entry for entry in fields]
    target.call("PATCH", target.path(), {"schema": {"fields": relaxed}}).expect(200)
    target.stored(row(1, org_id=None))
    expect(target.query("SELECT org_id FROM FACTS") == [(None,)], "the row without the column is not stored")


def drop_a_column_by_patch(target: Target) -> None:
    """A patch that omits a column is refused.

    Page: Modifying table schemas.
    """
    fields = target.create_table()["schema"]["fields"]
    target.call("PATCH", target.path(), {"schema": {"fields": fields[:-1]}}).expect(400)


def change_a_type_by_patch(target: Target) -> None:
    """A patch that changes a column's type is refused.

    Page: Modifying table schemas.
    """
    fields = target.create_table()["schema"]["fields"]
    changed = [entry | {"type": "STRING"} if entry["name"] == "org_id" else entry for entry in fields]
    target.call("PATCH", target.path(), {"schema": {"fields": changed}}).expect(400)


def widen_a_type(target: Target) -> None:
    """ALTER COLUMN SET DATA TYPE changes INT64 to NUMERIC; rows are kept, and integers are still accepted.

    Page: Data definition language (DDL) statements in GoogleSQL; Modifying table schemas.
    """
    target.create_table()
    target.stored(row(1))
    target.query("ALTER TABLE FACTS ALTER COLUMN org_id SET DATA TYPE NUMERIC")

    fields = target.call("GET", target.path()).expect(200).body["schema"]["fields"]
    kinds = [entry["type"] for entry in fields if entry["name"] == "org_id"]
    expect(kinds == ["NUMERIC"], f"the column is {kinds}")
    target.stored(row(2))
    expect(target.query("SELECT SUM(org_id) FROM FACTS") == [(2,)], "the values differ")


def narrow_a_type(target: Target) -> None:
    """An ALTER COLUMN SET DATA TYPE that could lose values is refused.

    Page: Data definition language (DDL) statements in GoogleSQL.
    """
    target.create_table()
    job: Any = None
    try:
        job = target.job("ALTER TABLE FACTS ALTER COLUMN row_id SET DATA TYPE INT64")
        job.result(retry=None)
    except Exception as error:
        code = getattr(error, "code", None)
        expect(code == 400, f"status {code}, not 400")
        return
    expect(False, "it is accepted")


def change_with_a_stale_etag(target: Target) -> None:
    """A change with the etag of an older state of the table is refused with 412.

    Page: HTTP status and error codes for BigQuery API; Method: tables.patch.
    """
    target.create_table()
    etag = str(target.call("GET", target.path()).expect(200).body.get("etag", ""))
    target.call("PATCH", target.path(), {"description": "one"}, {"If-Match": etag}).expect(200)
    target.call("PATCH", target.path(), {"description": "two"}, {"If-Match": etag}).expect(412)


def exact_view(target: Target) -> None:
    """The view that migrations create returns each identity once, and its query can be changed.

    Page: Method: tables.insert; Query syntax.
    """
    target.create_table()
    rows = [row(number, row_id=f"row-{number % 2}") for number in range(4)]
    target.stored(*rows)
    query = (
        f"SELECT * FROM `{PROJECT}.{target.dataset}.{TABLE}` "
        "WHERE TRUE QUALIFY ROW_NUMBER() OVER (PARTITION BY project_id, row_id ORDER BY timestamp) = 1"
    )
    reference = {"projectId": PROJECT, "datasetId": target.dataset, "tableId": f"{TABLE}_exact"}
    view = {"tableReference": reference, "view": {"query": query, "useLegacySql": False}}
    target.call("POST", f"/datasets/{target.dataset}/tables", view).expect(200)

    found = target.call("GET", target.path(f"{TABLE}_exact")).expect(200).body
    expect(found.get("type") == "VIEW", f"type is {found.get('type')}")
    expect((found.get("view") or {}).get("query") == query, "the query is not returned as given")
    count = len(target.segments(f"{TABLE}_exact"))
    expect(count == 2, f"the view has {count} rows, not 2")
    changed = {"view": {"query": query.replace(" = 1", " <= 2"), "useLegacySql": False}}
    target.call("PATCH", target.path(f"{TABLE}_exact"), changed).expect(200)
    count = len(target.segments(f"{TABLE}_exact"))
    expect(count == 4, f"the changed view has {count} rows, not 4")


# ---- insertAll


def insert_rows(target: Target) -> None:
    """Good rows are stored with their values; the response has the documented kind and names no row.

    Page: Method: tabledata.insertAll.
    """
    target.create_table()
    answer = target.insert(row(1), row(2, retention_days=30), ids=["a", "b"]).expect_row_errors({})
    expect(answer.body.get("kind") == INSERT_ALL, f"kind is {answer.body.get('kind')}")
    select = "row_id, org_id, retention_days, JSON_VALUE(attributes, '$.url')"
    found = target.query(f"SELECT {select} FROM FACTS ORDER BY segment_id")
    url = 'http://a/"ä'
    expect(found == [("row-1", 1, None, url), ("row-2", 1, 30, url)], f"the table has {found}")


def insert_into_a_missing_table(target: Target) -> None:
    """insertAll into a missing table fails with 404 notFound.

    Page: HTTP status and error codes for BigQuery API; Use the legacy streaming API.
    """
    target.create_dataset()
    target.insert(row(1)).expect(404, "notFound")


def bad_row_is_named(target: Target) -> None:
    """With skipInvalidRows, a row with a value of the wrong type is reported as invalid, and all other rows are
    stored.

    Page: Method: tabledata.insertAll; Use the legacy streaming API.
    """
    target.create_table()
    target.insert(row(0), row(1, segment_id="many"), row(2)).expect_row_errors({1: ["invalid"]})
    expect(target.segments() == [0, 2], f"stored: {target.segments()}")


def bad_row_stops_the_request(target: Target) -> None:
    """Without skipInvalidRows, nothing is stored, and the valid rows are reported as stopped.

    Page: Method: tabledata.insertAll; Use the legacy streaming API.
    """
    target.create_table()
    target.insert(row(0), row(1, segment_id="many"), skipInvalidRows=False).expect_row_errors(
        {0: ["stopped"], 1: ["invalid"]}
    )
    expect(target.segments() == [], f"stored: {target.segments()}")


def unknown_field(target: Target) -> None:
    """Without ignoreUnknownValues, a row with a column that the table lacks is invalid.

    Page: Method: tabledata.insertAll.
    """
    target.create_table()
    target.insert(row(0), row(1, brand_new=1)).expect_row_errors({1: ["invalid"]})
    expect(target.segments() == [0], f"stored: {target.segments()}")


def missing_required_value(target: Target) -> None:
    """A row in which a REQUIRED column is missing or null is invalid.

    Page: Method: tabledata.insertAll; Specifying a schema.
    """
    target.create_table()
    absent = {name: value for name, value in row(1).items() if name != "row_id"}
    target.insert(row(0), absent, row(2, row_id=None)).expect_row_errors({1: ["invalid"], 2: ["invalid"]})
    expect(target.segments() == [0], f"stored: {target.segments()}")


def integer_as_text(target: Target) -> None:
    """A whole number may be given as a string, which keeps numbers above 2^53 exact.

    Page: Legacy SQL data types.
    """
    target.create_table()
    large = 2**62 + 1
    target.stored(row(1, org_id=str(large)))
    expect(target.query("SELECT org_id FROM FACTS") == [(large,)], "the number is not exact")


def text_in_a_json_column(target: Target) -> None:
    """A JSON column accepts JSON as a string; a string that is not JSON is invalid.

    Page: Working with JSON data in GoogleSQL.
    """
    target.create_table()
    target.insert(row(0), row(1, attributes="{")).expect_row_errors({1: ["invalid"]})
    expect(target.segments() == [0], f"stored: {target.segments()}")


def insert_id_is_stored_once(target: Target) -> None:
    """A row that is sent again with its insertId within a minute is stored once.

    Page: Use the legacy streaming API.
    """
    target.create_table()
    for _ in range(2):
        target.insert(row(1), row(2), ids=["a", "b"]).expect_row_errors({})
    expect(target.segments() == [1, 2], f"stored: {target.segments()}")


def insert_id_too_long(target: Target) -> None:
    """An insertId of more than 128 characters is invalid.

    Page: Quotas and limits.
    """
    target.create_table()
    longest = "a" * INSERT_ID_CHARACTERS_MAX
    target.insert(row(1), ids=[longest]).expect_row_errors({})
    answer = target.insert(row(2), ids=[longest + "b"])
    expect(answer.status == 400 or answer.row_errors == {0: ["invalid"]}, f"129 characters are accepted: {answer}")


def request_too_large(target: Target) -> None:
    """A request of more than 10 MB is refused as a whole, with status 400 or 413, and nothing is stored.

    Page: Quotas and limits.
    """
    target.create_table()
    text = "x" * (REQUEST_BYTES_MAX // 10)
    answer = target.insert(*(row(number, event_type=text) for number in range(11)))
    expect(answer.status in (400, 413), f"11 MB: {answer}")
    expect(target.segments() == [], "rows of it are stored")


def too_many_rows(target: Target) -> None:
    """A request of more than 50,000 rows is refused as a whole.

    Page: Quotas and limits.
    """
    target.create_table()
    answer = target.insert(*({"row_id": "a"} for _ in range(50_001)))
    expect(answer.status == 400, f"50,001 rows: {answer}")


def time_outside_the_partitions(target: Target) -> None:
    """A row dated more than ten years ago is refused: streaming accepts dates from 10 years ago to 1 year ahead.

    Page: Use the legacy streaming API.
    """
    target.create_table()
    target.insert(row(0), row(1, timestamp="1999-01-01T00:00:00Z")).expect_row_errors({1: ["invalid"]})


# ---- timestamps


def _stored_at(target: Target, given: Any, seconds: float = NOW_SECONDS + 0.125) -> None:
    """Raises Mismatch unless a time in this form is stored as this Unix time."""
    target.create_table()
    target.stored(row(1, timestamp=given))
    ((stored,),) = target.query("SELECT UNIX_MICROS(timestamp) FROM FACTS")
    at = datetime.fromtimestamp(stored // 1_000_000, UTC) if 0 <= stored < 2**55 else stored
    expect(stored == round(seconds * 1_000_000), f"it is read as {at}")


def timestamp_as_rfc_3339(target: Target) -> None:
    """A timestamp with `T` and `Z`, as the sink writes it, is read with microsecond precision.

    Page: Data types.
    """
    _stored_at(target, row(1)["timestamp"])


def timestamp_as_rfc_3339_in_whole_seconds(target: Target) -> None:
    """A timestamp without a fraction, as the sink writes it for whole seconds, is also accepted.

    Page: Data types.
    """
    _stored_at(target, written(NOW_SECONDS), NOW_SECONDS)


def timestamp_as_canonical_text(target: Target) -> None:
    """A timestamp with a space before the time and the suffix `UTC` is read with microsecond precision.

    Page: Data types.
    """
    _stored_at(target, row(1)["timestamp"].replace("T", " ").replace("Z", " UTC"))


def timestamp_as_whole_seconds(target: Target) -> None:
    """A whole number is read as seconds since 1970; readers of release 0.2 write some timestamps in this form.

    Page: Legacy SQL data types.
    """
    _stored_at(target, NOW_SECONDS, NOW_SECONDS)


def timestamp_as_seconds_with_a_fraction(target: Target) -> None:
    """A number with a fraction is read as seconds since 1970; readers of release 0.2 also write timestamps in
    this form.

    Page: Legacy SQL data types.
    """
    _stored_at(target, NOW_SECONDS + 0.125)


def timestamp_that_is_none(target: Target) -> None:
    """A row with a timestamp that is not a time is reported as invalid.

    Page: Method: tabledata.insertAll; Data types.
    """
    target.create_table()
    target.insert(row(1, timestamp="yesterday")).expect_row_errors({0: ["invalid"]})


# ---- reading and deletion


def list_rows_by_page(target: Target) -> None:
    """tabledata.list returns all rows in pages, with totalRows, and with values as strings.

    Page: Method: tabledata.list.
    """
    target.create_table()
    target.stored(*map(row, range(5)))
    found, token, pages = [], "", 0
    while pages < 5:
        query = {"maxResults": "2", "selectedFields": "segment_id"} | ({"pageToken": token} if token else {})
        body = target.call("GET", f"{target.path()}/data", query=query).expect(200).body
        expect(body.get("totalRows") == "5", f"totalRows is {body.get('totalRows')!r}")
        found += [entry["f"][0]["v"] for entry in body.get("rows", ())]
        token, pages = str(body.get("pageToken") or ""), pages + 1
        if not token:
            break
    expect(sorted(found) == ["0", "1", "2", "3", "4"], f"the pages have {found}")
    expect(pages == 3, f"{pages} pages, not 3")


def list_timestamps(target: Target) -> None:
    """With useInt64Timestamp, tabledata.list returns a timestamp as microseconds.

    Page: Method: tabledata.list; DataFormatOptions.
    """
    target.create_table()
    target.stored(row(1))
    query = {"selectedFields": "timestamp", "formatOptions.useInt64Timestamp": "true"}
    body = target.call("GET", f"{target.path()}/data", query=query).expect(200).body
    value = body["rows"][0]["f"][0]["v"]
    expect(value == str(NOW_SECONDS * 1_000_000 + 125_000), f"the value is {value!r}")


def query_by_parameters(target: Target) -> None:
    """A query with array and timestamp parameters finds rows by identity and time, as reconcile requires.

    Page: Running parameterized queries.
    """
    target.create_table()
    target.stored(*map(row, range(4)))
    parameters = [
        bigquery.ArrayQueryParameter("ids", "STRING", ["row-1", "row-3", "row-9"]),
        bigquery.ArrayQueryParameter("projects", "INT64", [2]),
        bigquery.ScalarQueryParameter("low", "TIMESTAMP", datetime.fromtimestamp(NOW_SECONDS - 1, UTC)),
        bigquery.ScalarQueryParameter("high", "TIMESTAMP", datetime.fromtimestamp(NOW_SECONDS + 1, UTC)),
    ]
    where = "timestamp BETWEEN @low AND @high AND project_id IN UNNEST(@projects) AND row_id IN UNNEST(@ids)"
    found = target.query(
        f"SELECT DISTINCT project_id, row_id FROM FACTS WHERE {where} ORDER BY row_id", parameters
    )
    expect(found == [(2, "row-1"), (2, "row-3")], f"the query returns {found}")


def query_a_missing_table(target: Target) -> None:
    """A query on a missing table fails with 404 notFound.

    Page: HTTP status and error codes for BigQuery API.
    """
    target.create_dataset()
    body = {"query": f"SELECT 1 FROM `{PROJECT}.{target.dataset}.nothing`", "useLegacySql": False}
    target.call("POST", "/queries", body).expect(404, "notFound")


def invalid_query(target: Target) -> None:
    """A query with an unknown column fails with 400 invalidQuery.

    Page: HTTP status and error codes for BigQuery API.
    """
    target.create_table()
    body = {"query": f"SELECT nope FROM `{PROJECT}.{target.dataset}.{TABLE}`", "useLegacySql": False}
    target.call("POST", "/queries", body).expect(400, "invalidQuery")


def delete_recently_streamed_rows(target: Target) -> None:
    """A DELETE of rows that insertAll has just streamed is refused with 400, and the rows are kept.

    Page: Data manipulation language (DML) statements in GoogleSQL; HTTP status and error codes for BigQuery API.
    """
    target.create_table()
    target.stored(row(1))
    try:
        target.query("DELETE FROM FACTS WHERE segment_id = 1")
    except Exception as error:
        expect(getattr(error, "code", None) == 400, f"status {getattr(error, 'code', error)}, not 400")
        expect("streaming buffer" in str(error).lower(), "the message does not name the streaming buffer")
        expect(target.segments() == [1], f"the table has {target.segments()}")
        return
    expect(False, "the rows are deleted at once: there is no streaming buffer")


OPERATIONS = tuple(
    map(
        operation_of,
        (
            create_and_get_a_table,
            create_a_table_twice,
            get_a_missing_table,
            add_a_nullable_column,
            add_a_required_column,
            relax_a_required_column,
            drop_a_column_by_patch,
            change_a_type_by_patch,
            widen_a_type,
            narrow_a_type,
            change_with_a_stale_etag,
            exact_view,
            insert_rows,
            insert_into_a_missing_table,
            bad_row_is_named,
            bad_row_stops_the_request,
            unknown_field,
            missing_required_value,
            integer_as_text,
            text_in_a_json_column,
            insert_id_is_stored_once,
            insert_id_too_long,
            request_too_large,
            too_many_rows,
            time_outside_the_partitions,
            timestamp_as_rfc_3339,
            timestamp_as_rfc_3339_in_whole_seconds,
            timestamp_as_canonical_text,
            timestamp_as_whole_seconds,
            timestamp_as_seconds_with_a_fraction,
            timestamp_that_is_none,
            list_rows_by_page,
            list_timestamps,
            query_by_parameters,
            query_a_missing_table,
            invalid_query,
            delete_recently_streamed_rows,
        ),
    )
)
