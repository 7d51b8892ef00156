"""The sink in docs/adding-a-sink.md works as the page describes, and the page lists all files to change."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tasks.bisection import deliver
from tasks.errors import PermanentSinkError, TransientSinkError
from tasks.staging import Progress
from tasks.wire import Row
from tests.kit.paths import ROOT

PAGE = (ROOT / "docs" / "adding-a-sink.md").read_text()


@pytest.fixture
def sink(tmp_path: Path) -> Any:
    """The sink, made from the code on the page; it writes to an empty directory."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    found: dict[str, Any] = {"__name__": "the_page"}
    exec(compile(code, "docs/adding-a-sink.md", "exec"), found)
    return found["FilesSink"](tmp_path)


def row(number: int, *, project: int = 11, size_bytes: int = 0) -> Row:
    """A row of the given project; equal numbers produce equal ids."""
    json = msgspec.json.encode({"project_id": project, "number": number, "text": "x" * size_bytes})
    return Row("replays", f"id-{number}", json, number)


def contents(folder: Path) -> list[bytes]:
    """Returns the rows of all files."""
    return sorted(path.read_bytes() for path in folder.iterdir())


def test_a_repeated_write_leaves_one_copy(sink: Any, tmp_path: Path):
    """If rows are written again but grouped differently, one copy of each row remains."""
    rows = [row(1), row(2), row(1, project=12)]

    sink.write(rows, "first", 5.0)
    sink.write(rows[1:], "second", 5.0)

    assert contents(tmp_path) == sorted(written.json for written in rows)


def test_bad_rows_are_refused_and_the_others_kept(sink: Any, tmp_path: Path):
    """Invalid rows are refused and become dead letters, and all other rows are stored."""
    rows = [row(1), row(2, size_bytes=2 * 1024 * 1024), Row("replays", "id-3", b"no json", 3), row(4)]
    progress = Progress(left=list(range(len(rows))))

    def write(positions: Any) -> None:
        sink.write([rows[position] for position in positions], "token", 5.0)

    deliver(write, partial(lambda _: sink.examine((), 5.0)), progress, len(rows), lambda: True)

    assert [position for position, _ in progress.refused] == [1, 2]
    assert contents(tmp_path) == sorted([rows[0].json, rows[3].json])


def test_a_missing_directory_blames_no_row(sink: Any, tmp_path: Path):
    """If the directory is missing, the error is a configuration error, so the batch is parked and no row is
    refused.
    """
    tmp_path.rmdir()

    for ask in (lambda: sink.write([row(1)], "token", 5.0), sink.check):
        with pytest.raises(PermanentSinkError) as found:
            ask()
        assert found.value.configuration


def test_a_write_past_its_deadline_lists_all_items(sink: Any):
    """A write past its deadline reports all items as failed, so that all are retried."""
    with pytest.raises(TransientSinkError) as found:
        sink.write([row(1), row(2)], "token", 0.0)

    assert found.value.failed == (0, 1)


def test_the_files_of_the_page_name_the_sinks():
    """Each file in the page's table names an existing sink."""
    places = re.findall(r"^\| `([^`]+)` \|", PAGE, flags=re.MULTILINE)

    assert len(places) >= 8
    assert [place for place in places if "datadog" not in (ROOT / place).read_text().lower()] == []
