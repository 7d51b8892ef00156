"""`replays-ingest tenants`: rules that drop or limit the messages of a project."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from ingest.cli import ranges
from ingest.cli.common import (
    as_json,
    by_option,
    echo,
    echo_json,
    none_if_redis_is_unavailable,
    redis_required,
    settings,
)
from ingest.cli.confirm import confirm, yes_option
from ingest.cli.listing import CommandListGroup
from ingest.cli.ranges import BURST_MAX, MESSAGES_PER_SECOND_MAX, FiniteFloatRange
from ingest.settings import Settings
from tasks.connection import connect

if TYPE_CHECKING:  # commands import their dependencies when they run
    from ingest.reader.tenant_rules import TenantStore

UNKNOWN_RULE = "unknown"


@click.group(cls=CommandListGroup)
def tenants() -> None:
    """Rules that drop or limit the messages of one project, to protect all other projects."""


def _store(loaded: Settings) -> TenantStore:
    from ingest.reader.tenant_rules import TenantStore

    return TenantStore(connect(loaded), loaded)


@tenants.command("ls")
@as_json
def tenants_ls(as_json: bool) -> None:
    """List projects that are disabled or limited."""
    with redis_required():
        rules = _store(settings()).rules()
    limits = {str(p): {"per_second": r.per_second, "burst": r.burst} for p, r in rules.limits.items()}
    if as_json:
        echo_json({"killed": sorted(rules.killed), "limits": limits})
        return
    for project in sorted(rules.killed):
        echo(f"project {project}: off")
    for project_id, limit in limits.items():
        echo(f"project {project_id}: {limit['per_second']:g} messages per second, bursts of {limit['burst']:g}")
    if not (rules.killed or limits):
        echo("no rules")


@tenants.command("kill")
@click.argument("project", type=ranges.project)
@yes_option
@by_option
def tenants_kill(project: int, yes: bool, by: str) -> None:
    """Drop all further messages of PROJECT. Dropped messages are counted but cannot be recovered."""
    from ingest.operate.volume import volume_text

    def consequences() -> str:
        return f"Project {project}: {volume_text(settings(), project)}. All of its messages will be dropped."

    confirm(consequences, f"Drop all messages of project {project}?", yes=yes)
    _rule(project, lambda store: store.kill(project, by))


@tenants.command("revive")
@click.argument("project", type=ranges.project)
@by_option
def tenants_revive(project: int, by: str) -> None:
    """Accept messages of PROJECT again."""
    _rule(project, lambda store: store.revive(project, by))


@tenants.command("limit")
@click.argument("project", type=ranges.project)
@click.option(
    "--per-second",
    type=FiniteFloatRange(0.01, MESSAGES_PER_SECOND_MAX),
    help="Messages per second, across all readers.",
)
@click.option(
    "--burst", type=FiniteFloatRange(1, BURST_MAX), help="Burst size, messages; default: ten seconds' worth."
)
@click.option("--remove", is_flag=True, help="Remove the limit.")
@by_option
def tenants_limit(project: int, per_second: float | None, burst: float | None, remove: bool, by: str) -> None:
    """Limit PROJECT with a token bucket; excess messages are dropped and counted."""
    from ingest.reader.tenant_gate import Limit

    if remove == (per_second is not None):
        raise click.UsageError("give either --per-second or --remove")
    limit = None if per_second is None else Limit(per_second, burst or max(1.0, 10 * per_second))
    _rule(project, lambda store: store.limit(project, limit, by))


def _rule(project: int, change_rule: Callable[[Any], None]) -> None:
    """Changes a rule of the project and prints the old and the new rule."""
    with redis_required():
        store = _store(settings())
        before = _rule_text(store, project)
        change_rule(store)
        after = _rule_text(store, project)
    change = f"still {after}" if before == after else f"{after} (was {before})"
    if UNKNOWN_RULE in (before, after):
        change = "the rule is changed"
    echo(f"project {project}: {change}; readers apply it within two seconds")


def _rule_text(store: TenantStore, project: int) -> str:
    rules = none_if_redis_is_unavailable(store.rules)
    if rules is None:
        return UNKNOWN_RULE  # without the copy in Redis, rules can be changed but not shown
    if project in rules.killed:
        return "off"
    limit = rules.limits.get(project)
    if limit is None:
        return "on, no limit"
    return f"{limit.per_second:g} messages per second, bursts of {limit.burst:g}"


COMMANDS = (tenants,)
