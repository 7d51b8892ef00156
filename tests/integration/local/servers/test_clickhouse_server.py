"""The ClickHouse server, tested with the unmodified client library."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import clickhouse_connect
import pytest
import urllib3
from clickhouse_connect.driver.exceptions import DatabaseError

from ingest.local.servers.clickhouse import REQUEST_BYTES_MAX, ClickHouse
from ingest.local.servers.processes import Children


def client_of(url: str, **options: Any) -> Any:
    place = urlsplit(url)
    return clickhouse_connect.get_client(host=place.hostname, port=place.port, **options)


@pytest.fixture
def table(clickhouse_url: str, fresh_name: Callable[[str], str]) -> str:
    name = fresh_name("t")
    client_of(clickhouse_url).command(
        f"CREATE TABLE {name} (a UInt32, s String, at DateTime64(3, 'UTC') DEFAULT now64(3)) "
        "ENGINE = ReplacingMergeTree ORDER BY a SETTINGS non_replicated_deduplication_window = 100"
    )
    return name


def test_inserted_rows_are_returned_unchanged(clickhouse_url: str, table: str):
    """Rows that the client inserts in the native format, with every compression method, are returned unchanged."""
    for number, compression in enumerate([False, "lz4", "zstd", "gzip"]):
        client = client_of(clickhouse_url, compress=compression)
        written = client.insert(table, [[2 * number, "it's\n\\"], [2 * number + 1, "é"]], column_names=["a", "s"])
        assert written.written_rows == 2
        sql = f"SELECT s FROM {table} WHERE intDiv(a, 2) = {{half:UInt32}} ORDER BY a"
        rows = client.query(sql, parameters={"half": number})
        assert rows.result_rows == [("it's\n\\",), ("é",)]


def test_json_rows_are_inserted_as_bytes(clickhouse_url: str, table: str):
    """JSONEachRow data in the body is inserted, with the statement in the URL or before the data, as the flush
    fleet sends it.
    """
    client = client_of(clickhouse_url)

    client.raw_insert(table, ["a", "s"], b'{"a":1,"s":"x"}\n{"a":2,"s":"FORMAT y\\n"}\n', fmt="JSONEachRow")

    assert client.query(f"SELECT a, s FROM {table} ORDER BY a").result_rows == [(1, "x"), (2, "FORMAT y\n")]


def test_a_deduplication_token_applies_to_one_insert(clickhouse_url: str, table: str):
    """An insert with a repeated token is stored once, and an insert with a different token is stored again."""
    client = client_of(clickhouse_url)
    rows = [[1, "x"], [2, "y"]]

    def insert(token: str | None) -> int:
        settings = {"insert_deduplication_token": token} if token else {}
        client.insert(table, rows, column_names=["a", "s"], settings=settings)
        return int(client.command(f"SELECT count() FROM {table}"))

    assert insert("batch-1") == 2
    assert insert("batch-1") == 2
    assert insert("batch-2") == 4
    # The checksum of each part also acts as a token: the same bytes inserted again without a token are
    # deduplicated, too.
    assert insert(None) == 6
    assert insert(None) == 6


def test_errors_carry_clickhouse_codes(clickhouse_url: str, table: str):
    """Errors carry ClickHouse's codes, which the sink uses to decide whether to retry."""
    client = client_of(clickhouse_url)
    for sql, code in (
        ("SELECT * FROM no_such_table", "60"),
        ("SELEC 1", "62"),
        (f"SELECT nope FROM {table}", "47"),
    ):
        with pytest.raises(DatabaseError, match=f"(?i)code:? {code}"):
            client.query(sql)
    with pytest.raises(DatabaseError, match=r"27|26|117"):
        client.raw_insert(table, ["a"], b'{"a":"not a number"}\n', fmt="JSONEachRow")
    assert client.command("SELECT 1") == 1


def test_databases_are_separate(clickhouse_url: str, fresh_name: Callable[[str], str]):
    """Databases are separate, and each request can name a different database."""
    database = fresh_name("db")
    client_of(clickhouse_url).command(f"CREATE DATABASE {database}")
    inside = client_of(clickhouse_url, database=database)
    inside.command("CREATE TABLE t (a UInt8) ENGINE = MergeTree ORDER BY a")

    assert inside.command("SELECT count() FROM t") == 0
    assert client_of(clickhouse_url).command("SELECT currentDatabase()") == "default"


def test_many_clients_write_at_once_without_loss(clickhouse_url: str, fresh_name: Callable[[str], str]):
    """If four threads insert at the same time, each with its own client, no row is lost."""
    name = fresh_name("t")
    client_of(clickhouse_url).command(f"CREATE TABLE {name} (a UInt64) ENGINE = MergeTree ORDER BY a")

    def write(start: int) -> None:
        client = client_of(clickhouse_url)
        for step in range(10):
            client.insert(name, [[start + step * 100 + row] for row in range(100)], column_names=["a"])

    threads = [threading.Thread(target=write, args=(number * 1000,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert client_of(clickhouse_url).command(f"SELECT uniqExact(a) FROM {name}") == 4000


def test_a_request_over_the_bound_is_refused_unread(clickhouse_url: str):
    """A request whose body exceeds the bound gets 413, and the body is not read."""
    length = {"Content-Length": str(REQUEST_BYTES_MAX + 1)}
    with urllib3.PoolManager() as pool:
        answer = pool.request("POST", clickhouse_url, headers=length, body=iter([b"x"]), retries=False)

    assert answer.status == 413


def test_data_survives_a_kill(children: Children, tmp_path: Path):
    """After a SIGKILL and a restart, every acknowledged insert is present exactly once."""
    server = ClickHouse(children, tmp_path / "clickhouse")
    server.start()
    client = client_of(server.address)
    client.command("CREATE TABLE t (a UInt32) ENGINE = MergeTree ORDER BY a")
    for number in range(20):
        client.insert("t", [[number]], column_names=["a"])

    server.restart(kill=True)

    assert client_of(server.address).command("SELECT count() FROM t") == 20


def test_a_configured_password_is_required(children: Children, tmp_path: Path):
    """If a password is configured, a wrong password gives code 516. The right password is accepted."""
    server = ClickHouse(children, tmp_path / "clickhouse", user="fleet", password="s3cret")
    server.start()

    with pytest.raises(DatabaseError, match="516"):
        client_of(server.address, username="fleet", password="wrong")
    assert client_of(server.address, username="fleet", password="s3cret").command("SELECT 1") == 1
