"""`replays-ingest tenants`: rules that drop or limit the messages of a project."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from ingest.cli.common import as_json, by_option, echo, echo_json, redis_answers, settings
from ingest.cli.listing import Listing
from ingest.settings import Settings
from tasks.connection import connect


@click.group(cls=Listing)
def tenants() -> None:
    """Rules that drop or limit the messages of one project, to protect the others."""


def _store(loaded: Settings) -> Any:
    from ingest.reader.tenant_rules import TenantStore

    return TenantStore(connect(loaded), loaded)


@tenants.command("ls")
@as_json
def tenants_ls(as_json: bool) -> None:
    """List projects that are disabled or limited."""
    with redis_answers():
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
@click.argument("project", type=click.IntRange(0))
@by_option
def tenants_kill(project: int, by: str) -> None:
    """Drop all messages of PROJECT from now on. Dropped messages are counted and cannot be recovered."""
    _rule(lambda store: store.kill(project, by))


@tenants.command("revive")
@click.argument("project", type=click.IntRange(0))
@by_option
def tenants_revive(project: int, by: str) -> None:
    """Accept messages of PROJECT again."""
    _rule(lambda store: store.revive(project, by))


@tenants.command("limit")
@click.argument("project", type=click.IntRange(0))
@click.option("--per-second", type=click.FloatRange(0.01), help="Messages per second, across all readers.")
@click.option("--burst", type=click.FloatRange(1), help="Burst size, messages; default: ten seconds' worth.")
@click.option("--remove", is_flag=True, help="Remove the limit.")
@by_option
def tenants_limit(project: int, per_second: float | None, burst: float | None, remove: bool, by: str) -> None:
    """Limit PROJECT with a token bucket; excess messages are dropped and counted."""
    from ingest.reader.tenant_gate import Limit

    if remove == (per_second is not None):
        raise click.UsageError("give either --per-second or --remove")
    limit = None if per_second is None else Limit(per_second, burst or max(1.0, 10 * per_second))
    _rule(lambda store: store.limit(project, limit, by))


def _rule(act: Callable[[Any], None]) -> None:
    with redis_answers():
        act(_store(settings()))
    echo("done; readers apply it within two seconds")


COMMANDS = (tenants,)
