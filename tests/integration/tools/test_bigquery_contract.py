"""Our BigQuery emulator behaves in every operation as Google's documentation says.

`make bigquery-contract` also runs third-party servers.
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
from tools.bigquery_contract.target import Operation, Target, run_operation


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BigQuery]:
    """Our emulator, started in the same way as by `make bigquery-contract`."""
    directory = tmp_path_factory.mktemp("contract")
    with Children(directory / "logs") as children:
        server = ours(children, directory)
        server.start()
        yield server
        kill_all(children)


@pytest.mark.parametrize("chosen", OPERATIONS, ids=lambda chosen: chosen.name)
def test_the_emulator_does_as_documented(emulator: BigQuery, chosen: Operation) -> None:
    """The emulator passes the check of every operation; each check uses a separate dataset."""
    assert run_operation(Target(emulator.address, emulator.storage_address), chosen) == ""


@pytest.mark.parametrize("body", [b"{}", b'{"kind": "bigquery#tableDataInsertAllResponse"}'])
def test_a_server_that_accepts_everything_passes_no_operation(body: bytes) -> None:
    """A server that answers every REST call with success, but offers no Storage Write API, passes no check."""
    with answering(lambda asked: Answer(200, body)) as (url, _):
        passed = [
            chosen.name for chosen in OPERATIONS if not run_operation(Target(url, "http://127.0.0.1:1"), chosen)
        ]

    assert passed == []
