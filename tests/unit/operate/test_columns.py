"""Tables fit the terminal, with one line per row, and ids are not truncated at any width."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.text import Text

from ingest.operate.columns import Column, FittedTable

BATCH = "ingest-replay-recordings-3-1234567890-1234568890"
ERROR = "clickhouse: connection refused, for the fourth time in a row"
COLUMNS = (
    Column("batch"),
    Column("time", rank=2, short=lambda text: text[:5]),
    Column("error", rank=1, room=12),
    Column("sink", rank=3),
    Column("messages", rank=4, numeric=True),
)


def drawn(width: int, *rows: tuple[str, ...], columns: tuple[Column, ...] = COLUMNS) -> list[str]:
    """Returns the lines of the table, header first, without trailing spaces."""
    table = FittedTable(columns)
    for row in rows:
        table.add_row(*row)
    file = io.StringIO()
    Console(file=file, width=width).print(table)
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_a_wide_terminal_shows_everything():
    """On a wide terminal every column is shown, even a column without any text."""
    header, row = drawn(160, (BATCH, "12:00:03", ERROR, "", "7"))

    assert header.split() == ["batch", "time", "error", "sink", "messages"]
    assert row.startswith(f"{BATCH}  12:00:03  {ERROR}")


def test_an_empty_list_is_one_line_that_says_so():
    """Instead of a table without rows, its `empty` text is shown; if the table has no such text, only the header
    is shown.
    """
    file = io.StringIO()
    Console(file=file, width=80).print(FittedTable(COLUMNS, empty="no batch is parked"))

    assert file.getvalue() == "no batch is parked\n"
    assert len(drawn(160)) == 1


def test_less_important_columns_are_left_out_and_texts_are_cut():
    """On a narrow terminal, the id is shown in full, the time is abbreviated, the text ends with an ellipsis, and
    no line is too long.
    """
    header, row = drawn(78, (BATCH, "12:00:03", ERROR, "", "7"))

    assert header.split() == ["batch", "time", "error"]
    assert row.startswith(f"{BATCH}  12:00  clickhouse: conn")
    assert row.endswith("…")
    assert len(row) <= 78


@pytest.mark.parametrize("width", range(20, 170))
def test_ids_are_whole_at_every_width(width: int):
    """Each row takes one line, unless the terminal is narrower than an id; the id then continues below."""
    rows = ((BATCH, "12:00:03", ERROR, "", "7"), ("t-0-1-2", "12:00:04", "x", "gcs", "1,000"))
    header, *lines = drawn(width, *rows)

    assert max(map(len, (header, *lines))) <= width
    if width >= len(BATCH):
        assert len(lines) == 2
        assert lines[0].startswith(BATCH)
    else:
        assert "".join(lines).startswith(BATCH)


def test_an_empty_column_never_takes_the_room_of_a_text():
    """A column without text takes no space, so the error, which is longer than its minimum width, is shown in
    full.
    """
    columns = (Column("id"), Column("sink", rank=1), Column("error", rank=2, room=4))

    assert drawn(20, ("0-1", "", "exactly fifteen"), columns=columns)[1] == "0-1  exactly fifteen"


def test_the_width_of_unprintable_and_wide_letters_is_known():
    """The width of text is computed correctly: control characters are replaced before the text is laid out, and a
    character may be two terminal cells wide.
    """
    table = FittedTable((Column("user", room=6), Column("id")))
    table.add_row(Text("\x1b[31mann", style="bold"), "0-1")
    table.add_row("山田太郎", "0-2")
    file = io.StringIO()
    Console(file=file, width=14).print(table)

    assert "\x1b" not in file.getvalue()
    assert [line.split()[-1] for line in file.getvalue().splitlines()[1:]] == ["0-1", "0-2"]
