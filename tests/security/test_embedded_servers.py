"""Clients of the embedded servers' ports, including web pages in a browser, can neither read nor write the
user's files.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import quote

import pytest

from ingest.local.servers import confinement
from ingest.local.stack import Stack

pytestmark = pytest.mark.skipif(
    not confinement.is_supported(), reason="this kernel has no Landlock: nothing is confined, as SECURITY.md says"
)
SECRET = "a key of mine"
BROWSERS = (
    {"Origin": "https://site.example"},
    {"Origin": "null"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Referer": "https://site.example/"},
    {"Host": "rebound.example"},
    {"Host": "127.0.0.1.rebound.example:80"},
)


def status_of(url: str, data: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    """Sends a GET request, or a POST request if `body` is given, and returns the status and body of the
    response.
    """
    request = urllib.request.Request(url, data=data, headers=headers or {})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_sql_cannot_read_or_write_files_of_the_host(stack: Stack, tmp_path: Path):
    """Neither table functions nor the file features of ClickHouse's own client can reach our files."""
    url = stack.start(["clickhouse"]).addresses["clickhouse"]
    mine, planted = tmp_path / "key", tmp_path / "planted"
    mine.write_text(SECRET)
    (tmp_path / "link").symlink_to(mine)
    attacks = [f"SELECT * FROM file('{path}', LineAsString)" for path in (mine, tmp_path / "link")]
    attacks += [
        f"INSERT INTO FUNCTION file('{planted}', RawBLOB) SELECT 'x'",
        f"INSERT INTO FUNCTION file('../../../../../../../..{planted}', RawBLOB) SELECT 'x'",
        f"SELECT 1 INTO OUTFILE '{planted}'",
        f"INSERT INTO FUNCTION file('{mine}', RawBLOB) SELECT 'x' SETTINGS engine_file_truncate_on_insert = 1",
        f"CREATE DATABASE planted ENGINE = SQLite('{planted}')",
    ]

    for sql in attacks:
        status, body = status_of(f"{url}/", sql.encode())
        assert SECRET not in body.decode("utf-8", "replace"), sql
        assert status != 200, (sql, body)
    assert mine.read_text() == SECRET
    assert not planted.exists()
    assert status_of(f"{url}/", b"SELECT 1")[1] == b"1\n"


def test_an_objects_name_leads_to_no_other_directory(stack: Stack, tmp_path: Path):
    """No object is stored outside the bucket's directory or over an existing file."""
    url = stack.start(["gcs"]).addresses["gcs"]
    mine = tmp_path / "key"
    mine.write_text(SECRET)
    assert status_of(f"{url}/storage/v1/b?project=p", b'{"name": "confined"}')[0] == 200

    for name in (
        f"{'../' * 12}{tmp_path}/planted",
        f"{'../' * 12}{mine}",
    ):
        place = f"{url}/upload/storage/v1/b/confined/o?uploadType=media&name={quote(name, safe='')}"
        assert status_of(place, b"x")[0] >= 400, name
    assert [path.name for path in tmp_path.iterdir()] == ["key"]
    assert mine.read_text() == SECRET


@pytest.mark.parametrize("headers", BROWSERS, ids=str)
def test_requests_from_web_pages_are_refused(stack: Stack, headers: dict[str, str]):
    """Requests from web pages are refused, because any site can make a browser send them to loopback ports,
    although it cannot read the responses.
    """
    stack.start(["clickhouse", "bigquery", "statsd"])
    addresses = stack.addresses
    sent = (
        (f"{addresses['clickhouse']}/?query=SELECT+1", None),
        (f"{addresses['clickhouse']}/", b"SELECT 1"),
        (f"{addresses['bigquery']}/bigquery/v2/projects/p/queries", b'{"query": "SELECT 1"}'),
        (f"{addresses['statsd_query']}/metrics", None),
        (f"{addresses['statsd_query']}/reset", b""),
    )

    for url, body in sent:
        assert status_of(url, body, headers)[0] == 403, url
        if not url.endswith("/reset"):
            assert status_of(url, body)[0] == 200, url
