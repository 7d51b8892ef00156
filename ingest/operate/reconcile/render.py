"""Formats the result as text: the scope, one line per sink, and the first missing items."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import Group
from rich.table import Table

from ingest.operate.reconcile.account import Account, MissingItem

SHOWN_MAX = 20


def render(account: Account) -> Group:
    """Formats the result for a terminal."""
    summary = [
        f"{account.topic}, partition {span.partition}: [{span.start}, {span.stop}){span.unread_offsets_text()}"
        for span in account.spans
    ]
    summary.append(
        f"{account.messages} messages: {account.segments} segments, {account.rejects} rejects, "
        f"{account.given_up} dead letters, {account.shed} dropped by a tenant rule, "
        f"{account.erased} erased, {account.expired} past their retention"
    )
    table = Table("sink", "checked", "missing", "differs", *(["repaired"] if account.repairing else []), "")
    for name, tally in account.sinks.items():
        numbers = [tally.checked, tally.missing, tally.differs] + [tally.repaired] * account.repairing
        table.add_row(name, *(f"{number:,}" for number in numbers), "NOT OK" if tally.left else "ok")
    examples = [*_lines(account.examples, ""), *_lines(account.unrepaired, "still ")]
    return Group(*summary, table, *examples, *account.notes, *(f"failed: {text}" for text in account.failures))


def _lines(missing: Sequence[MissingItem], prefix: str) -> Iterator[str]:
    """Yields lines for the first SHOWN_MAX items of each sink."""
    shown: Counter[str] = Counter()
    for entry in missing:
        shown[entry.sink] += 1
        if shown[entry.sink] <= SHOWN_MAX:
            where = f"segment {entry.segment or '-'}, partition {entry.partition} offset {entry.offset}"
            yield f"{prefix}{entry.problem}: {entry.sink} {entry.item} ({where})"
