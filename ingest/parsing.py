"""Where parsing runs: in the loop's own process, or in processes beside it, by a setting.

Parsing is a pure function of a message and the rules, so nothing else of the application can tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ingest.core import events as on
from ingest.core.model import Message
from ingest.core.parse import ParseRules, parse


class InlineParser:
    """Parses in the calling thread."""

    def __init__(self, rules: ParseRules) -> None:
        self._rules = rules

    def parse(self, messages: Sequence[Message]) -> Iterable[on.MessageParsed]:
        """One event a message, at once, in order."""
        for message in messages:
            outcome = parse(message, self._rules)
            yield on.MessageParsed(message.source, message.epoch, message.offset, outcome)
