"""An unusable limit in the operators' topic does not stop a reader or a command, and no option accepts such a
number.
"""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest

from ingest.cli.main import main
from ingest.reader.erasures import erasures_of
from ingest.reader.tenant_gate import Limit, TenantGate
from ingest.reader.tenant_rules import TenantRefresh, TenantStore
from ingest.settings import Settings
from tasks.connection import connect
from tasks.kafka.decisions import DecisionWriter
from tasks.operators import Operators, names

POISONED, LIMITED = 41, 42
UNUSABLE: tuple[dict[str, object], ...] = (
    {"per_second": 1e308, "burst": float("inf")},  # JSON has no infinity: the burst becomes null
    {"per_second": 0.0, "burst": 10.0},
    {"per_second": "5", "burst": 50.0},
    {},
)
# No command writes such records, but a producer with access to the topic can.
MALFORMED: dict[str, dict[str, object]] = {
    "killed/everyone": {},
    "killed": {},
    "limit/-1": {"per_second": 5.0, "burst": 50.0},
    "limit/٤": {"per_second": 5.0, "burst": 50.0},
    "erased/x/all": {"at": 1.0},
    "erased/41": {"at": 1.0},
    "erased/41/all": {},
    "erased/41/all/more": {"at": 1.0},
    "erased/41/replay": {"at": 1.0},
    "erased/41/user/abc": {"at": "yesterday"},
    "erased/41/other/abc": {"at": 1.0},
    "erased/41/replay/abc": {"at": 1.0, "until": None},
}


@pytest.fixture
def store(stored: Settings) -> Iterator[TenantStore]:
    """A store for rules. The limits that a test sets are removed at the end."""
    store = TenantStore(connect(stored), stored)
    yield store
    for project in (POISONED, LIMITED):
        store.limit(project, None, "ann")


@pytest.mark.parametrize("value", UNUSABLE)
def test_a_limit_that_is_not_a_number_does_not_stop_readers_or_commands(
    stored: Settings, store: TenantStore, value: dict[str, object]
) -> None:
    """If a limit is not a number, readers and commands ignore it and apply the other rules."""
    client = connect(stored)
    DecisionWriter(stored).write({f"limit/{POISONED}": {"at": 1.0, "by": "ann", **value}})
    store.limit(LIMITED, Limit(5.0, 50.0), "ann")
    gate = TenantGate()
    refresh = TenantRefresh(client, stored, gate)

    assert refresh.load(lambda seconds: False)

    assert gate.rules.limits == store.rules().limits == {LIMITED: Limit(5.0, 50.0)}
    client.delete(*names(stored.key_prefix))
    assert store.rules() == gate.rules
    refresh.stop()


def test_decisions_that_no_command_writes_stop_neither_readers_nor_commands(
    stored: Settings, store: TenantStore
) -> None:
    """Readers and commands ignore a decision that no command could have written, and apply the other rules."""
    client = connect(stored)
    operators = Operators(client, stored)
    DecisionWriter(stored).write({key: {"by": "ann", **value} for key, value in MALFORMED.items()})
    store.limit(LIMITED, Limit(5.0, 50.0), "ann")
    gate = TenantGate()
    refresh = TenantRefresh(client, stored, gate)

    try:
        assert refresh.load(lambda seconds: False)

        assert gate.rules.limits == store.rules().limits == {LIMITED: Limit(5.0, 50.0)}
        assert not gate.rules.killed
        assert not erasures_of(operators.in_force(), 2.0)
        assert MALFORMED.keys().isdisjoint(operators.in_force())
        refresh.refresh()
    finally:
        refresh.stop()
        DecisionWriter(stored).write(dict.fromkeys(MALFORMED))


def test_an_unusable_limit_in_the_copy_is_not_in_force(stored: Settings, store: TenantStore) -> None:
    """An unusable limit in the copy in Redis, which an earlier release may have written, is not applied."""
    store.limit(POISONED, Limit(1e308, float("inf")), "ann")

    assert POISONED not in store.rules().limits


def numeric_options() -> Iterator[tuple[list[str], click.Parameter]]:
    """Returns the options and arguments of all commands that accept a fraction."""
    waiting: list[tuple[list[str], click.Command]] = [([], main)]
    while waiting:
        path, command = waiting.pop()
        if isinstance(command, click.Group):
            waiting += [([*path, name], subcommand) for name, subcommand in command.commands.items()]
        for parameter in command.params:
            if isinstance(parameter.type, click.types.FloatParamType):
                yield path, parameter


@pytest.mark.parametrize("text", ["nan", "inf", "1e999", "-inf"])
def test_no_option_accepts_a_number_that_is_not_finite(text: str) -> None:
    """For every numeric option, NaN and infinity are usage errors."""
    found = list(numeric_options())
    assert len(found) > 5

    for path, parameter in found:
        with pytest.raises(click.BadParameter):
            print(path, parameter.name, parameter.type.convert(text, parameter, None))


def test_offsets_and_partitions_beyond_kafkas_range_are_refused(stored: Settings) -> None:
    """Offsets and partitions outside Kafka's range are usage errors."""
    for command, option in (("reconcile", "--partition"), ("shadow", "--partition"), ("shadow", "--stop")):
        with pytest.raises(click.BadParameter):
            main.commands[command].make_context(command, [option, str(2**63)])
