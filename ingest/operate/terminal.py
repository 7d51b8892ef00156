"""A console for commands that never interprets external text as markup."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from tasks.printed import printable

LINE_END = "\n"


class Terminal(Console):
    """A console that replaces unprintable characters in the strings that it prints, and does not interpret markup.
    Styles are set with `Text`.
    """

    def __init__(self, *, columns_without_terminal: int | None = None, **options: Any) -> None:
        """`columns_without_terminal`: width for output to a pipe or file, unless COLUMNS is set."""
        super().__init__(**{"markup": False, "emoji": False, **options})
        # If COLUMNS is set, rich has set `_width`.
        if columns_without_terminal and not self.is_terminal and self._width is None:
            self.width = columns_without_terminal

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """All output goes through this method, including table cells."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text == LINE_END:
                yield segment
            else:
                lines = segment.text.split(LINE_END)
                yield Segment(LINE_END.join(map(printable, lines)), segment.style, segment.control)
