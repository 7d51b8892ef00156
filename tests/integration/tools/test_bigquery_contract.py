"""Our BigQuery emulator does in every operation what Google's documentation says.

`make bigquery-contract` also runs the servers of others.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ingest.local.servers.bigquery.server import BigQuery
from ingest.local.servers.processes import Children
from tests.kit.scripted_server import Answer, answering
from tests.kit.servers import kill_all
from tools.bigquery_contract.operations import OPERATIONS
from tools.bigquery_contract.servers import ours
from tools.bigquery_contract.target import Operation, Target, judged


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BigQuery]:
    """Our emulator as `make bigquery-contract` runs it."""
    directory = tmp_path_factory.mktemp("contract")
    with Children(directory / "logs") as children:
        server = ours(children, directory)
        server.start()
        yield server
        kill_all(children)


@pytest.mark.parametrize("chosen", OPERATIONS, ids=lambda chosen: chosen.name)
def test_the_emulator_does_as_documented(emulator: BigQuery, chosen: Operation) -> None:
    """Each operation, in a data set of its own."""
    assert judged(Target(emulator.address, emulator.storage_address), chosen) == ""


@pytest.mark.parametrize("body", [b"{}", b'{"kind": "bigquery#tableDataInsertAllResponse"}'])
def test_a_server_that_accepts_everything_passes_no_operation(body: bytes) -> None:
    """A server that answers every REST call with success, and no call of the Storage Write API."""
    with answering(lambda asked: Answer(200, body)) as (url, _):
        passed = [chosen.name for chosen in OPERATIONS if not judged(Target(url, "http://127.0.0.1:1"), chosen)]

    assert passed == []
