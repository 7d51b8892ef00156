"""Tables that fit the width of the terminal, one line per row.

Columns that matter less are left out, and long texts end with an ellipsis. A column without `room`, such as an id
that is copied into the next command, is never cut: if even these columns do not fit, their cells wrap onto the
next line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from tasks.printed import printable

GAP_COLUMNS = 2  # between two columns
EMPTY_CELLS = frozenset(("", "·"))


@dataclass(frozen=True, slots=True)
class Column:
    """One column. `rank`: 0 if the column is always shown; of all other columns, those with a lower rank take
    precedence.

    `room`: minimum number of characters that remain if the text is cut; None: the text is never cut. `short`: a
    shorter form of each text, used if the table would not fit otherwise.
    """

    name: str
    rank: int = 0
    room: int | None = None
    numeric: bool = False
    short: Callable[[str], str] | None = None


class FittedTable:
    """A table whose cells are strings. A cell's style applies to the whole cell."""

    def __init__(
        self, columns: Sequence[Column], *, title: str = "", expand: bool = False, empty: str = ""
    ) -> None:
        """`expand`: widens the columns to the whole terminal. `empty`: the line printed if there are no rows."""
        self._empty = empty
        self.caption = ""
        self._columns = columns
        self._title = title
        self._expand = expand
        self._rows: list[tuple[list[Text], str]] = []

    def add_row(self, *cells: str | Text, style: str = "") -> None:
        """Adds one cell per column. Unprintable characters are replaced, because their width is unknown."""
        assert len(cells) == len(self._columns), (cells, self._columns)
        plain = [cell if isinstance(cell, Text) else Text(cell) for cell in cells]
        self._rows.append(([Text(printable(cell.plain), style=cell.style) for cell in plain], style))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """rich calls this with the width that is available."""
        if self._empty and not self._rows:
            yield Text(self._empty)
            return
        table = Table(
            title=self._title or None,
            caption=self.caption or None,
            title_justify="left",
            title_style="bold",
            header_style="dim" if self._title else "bold",
            expand=self._expand,
            box=None,
            pad_edge=False,
        )
        texts = self._texts(options.max_width)
        widths = self._widths(texts, options.max_width)
        fits = self._total(widths.values()) <= options.max_width
        for index, width in widths.items():
            column = self._columns[index]
            table.add_column(
                column.name,
                justify="right" if column.numeric else "left",
                width=width if fits else None,
                no_wrap=fits,
                overflow="ellipsis" if fits else "fold",
            )
        for row, (_, style) in zip(texts, self._rows, strict=True):
            table.add_row(*(row[index] for index in widths), style=style)
        yield table

    def _texts(self, width: int) -> list[list[Text]]:
        """Returns the cells of all rows, in their short form if the long forms of all columns need more than
        `width`."""
        rows = [row for row, _ in self._rows]
        if self._total(self._min_width(rows, index) for index in range(len(self._columns))) <= width:
            return rows
        shorts = [column.short or str for column in self._columns]
        return [
            [Text(short(cell.plain), style=cell.style) for short, cell in zip(shorts, row, strict=True)]
            for row in rows
        ]

    def _widths(self, rows: list[list[Text]], width: int) -> dict[int, int]:
        """Maps the index of each shown column to the column's width, in column order.

        Columns without any text are shown only if there is space left after the full text of the other columns.
        """
        least = {index: self._min_width(rows, index) for index in range(len(self._columns))}
        ranks = {index: column.rank for index, column in enumerate(self._columns)}
        empty = {index for index in least if ranks[index] and all(row[index].plain in EMPTY_CELLS for row in rows)}
        shown: dict[int, int] = {}
        for index in sorted(least.keys() - empty, key=lambda index: (ranks[index], index)):
            if ranks[index] == 0 or self._total([*shown.values(), least[index]]) <= width:
                shown[index] = least[index]
        for index in shown:  # in the order of their rank
            spare = max(0, width - self._total(shown.values()))
            shown[index] += min(spare, self._longest(rows, index) - shown[index])
        for index in sorted(empty, key=lambda index: (ranks[index], index)):
            if self._total([*shown.values(), least[index]]) <= width:
                shown[index] = least[index]
        return dict(sorted(shown.items()))

    def _longest(self, rows: list[list[Text]], index: int) -> int:
        name = cell_len(self._columns[index].name)
        return max(name, *(cell_len(row[index].plain) for row in rows), 1)

    def _min_width(self, rows: list[list[Text]], index: int) -> int:
        """Returns the width below which the column is not shown."""
        column, longest = self._columns[index], self._longest(rows, index)
        return longest if column.room is None else min(longest, max(column.room, cell_len(column.name)))

    @staticmethod
    def _total(widths: Iterable[int]) -> int:
        """Returns the total width of the columns, including the gaps between them."""
        found = list(widths)
        return sum(found) + GAP_COLUMNS * max(0, len(found) - 1)
