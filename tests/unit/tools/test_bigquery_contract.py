"""The page about BigQuery's API shows the committed result, and the result contains every operation."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from ingest.local.servers.processes import LocalError
from tools.bigquery_contract.operations import OPERATIONS
from tools.bigquery_contract.page import AS_DOCUMENTED, NOT_RUN, RESULT, page_of
from tools.bigquery_contract.servers import EMULATOR, PACKAGES, installed, interpreter
from tools.bigquery_contract.target import Target, plain

COMMITTED = json.loads(RESULT.read_text())


def test_the_committed_result_has_every_operation_on_every_server() -> None:
    """A new operation, or another pinned version, requires a new run."""
    assert list(COMMITTED["operations"]) == [chosen.name for chosen in OPERATIONS]
    assert set(COMMITTED["servers"]) == {EMULATOR, *(package.name for package in PACKAGES)}
    for package in PACKAGES:
        assert COMMITTED["servers"][package.name].startswith(package.version)
    for name, entry in COMMITTED["operations"].items():
        assert entry.keys() == COMMITTED["servers"].keys(), name
        assert entry[EMULATOR] == "", name


@pytest.mark.parametrize("chosen", OPERATIONS, ids=lambda chosen: chosen.name)
def test_an_operation_names_what_it_expects_and_where_that_is_documented(chosen) -> None:
    """Each operation is described in one sentence and cites documentation pages by title."""
    assert re.fullmatch(r"[A-Za-z].{20,}\.", chosen.what), chosen.what
    assert chosen.pages
    assert all(page and not page.startswith("http") for page in chosen.pages)


def test_the_page_shows_what_differs_and_what_was_not_run() -> None:
    """The page shows how a server differs from the documentation, and which operations were not run."""
    first = OPERATIONS[0].name
    result = {
        "date": "2026-01-02",
        "servers": {"one": "1", "two": "2"},
        "operations": {first: {"one": "a|b *c*", "two": ""}},
    }

    page = "\n".join(page_of(result))

    assert "2026-01-02" in page
    assert "| one | 1 | 0 of 1 |" in page
    assert f"| a\\|b \\*c\\* | {AS_DOCUMENTED} |" in page
    assert f"| {NOT_RUN} | {NOT_RUN} |" in page


def test_a_result_has_no_address_path_or_generated_name() -> None:
    """Addresses, paths and generated names are replaced, so that two runs produce the same text."""
    target = Target("http://127.0.0.1:4711", "http://127.0.0.1:4712")
    text = f"500 at http://127.0.0.1:4711/x for {target.dataset}\nin /tmp/some/where/x.py, {'0' * 32}"

    assert plain(text, target) == "500 at SERVER/x for DATASET in PATH, ID"
    target.close()


def test_a_missing_interpreter_is_named(tmp_path: Path) -> None:
    """The running interpreter is found by its version. If no installed interpreter has one of the requested
    versions, the error names these versions.
    """
    assert interpreter((f"{sys.version_info.major}.{sys.version_info.minor}",)) == sys.executable
    with pytest.raises(LocalError, match=r"no Python 1\.2 or 1\.3 is installed"):
        interpreter(("1.2", "1.3"))


def test_a_complete_environment_is_used_again(tmp_path: Path) -> None:
    """Nothing is installed if the cache has the environment of the pinned packages."""
    package = PACKAGES[0]
    place = tmp_path / f"{package.name}-{package.digest}"
    place.mkdir()
    (place / "complete").touch()

    assert installed(package, tmp_path) == place
    assert list(place.iterdir()) == [place / "complete"]
