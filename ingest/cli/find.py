"""The command `replays find`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from ingest.cli import replays
from ingest.cli.common import as_json, echo_json
from ingest.cli.replays import AgeType, open_reads, project_option, replays_group, replays_table
from ingest.operate.terminal import Terminal
from tasks.printed import printable

if TYPE_CHECKING:  # commands import their dependencies when they run
    from ingest.web.evidence import FoundPage
    from ingest.web.selector import Selector

SEARCH_CHARACTERS_MAX = 200


class SearchTextType(click.ParamType[str]):
    """An option value of 1 to SEARCH_CHARACTERS_MAX characters."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not str(value).strip() or len(str(value)) > SEARCH_CHARACTERS_MAX:
            self.fail(f"give 1 to {SEARCH_CHARACTERS_MAX} characters", param, ctx)
        return str(value)


class SelectorType(click.ParamType["Selector"]):
    """A CSS selector such as `button#buy.primary`."""

    name = "selector"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Selector:
        from ingest.web.selector import parse_selector

        try:
            return parse_selector(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class ErrorIdType(click.ParamType[str]):
    """A Sentry event id: 32 hex digits, with or without dashes."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from ingest.web.model import REPLAY_ID

        plain = str(value).strip().replace("-", "").lower()
        if not REPLAY_ID.fullmatch(plain):
            self.fail(f"{value!r} is not an event id of Sentry: 32 hex digits", param, ctx)
        return plain


@replays_group.command("find")
@project_option
@click.option("--url", type=SearchTextType(), default=None, help="Part of a page's address, case-insensitive.")
@click.option(
    "--user", type=SearchTextType(), default=None, help="Part of a user's id, name or e-mail, case-insensitive."
)
@click.option("--release", type=SearchTextType(), default=None, help="Exact release.")
@click.option("--selector", type=SelectorType(), help="Clicked element: tag, #id, .class, [data-testid=...].")
@click.option(
    "--rage", is_flag=True, help="Only replays with rage clicks. With --selector: rage clicks on that element."
)
@click.option(
    "--dead", is_flag=True, help="Only replays with dead clicks. With --selector: dead clicks on that element."
)
@click.option("--error", type=ErrorIdType(), help="Only replays that contain the error with this id.")
@click.option(
    "--text",
    type=SearchTextType(),
    default=None,
    help="Text in any event (breadcrumb, console message, request, click). Reads every listed replay's recording.",
)
@click.option("--since", type=AgeType(), help="Only replays younger than this, for example 90s, 15m, 6h or 7d.")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 100), help="Replays per page.")
@click.option(
    "--offset", default=0, show_default=True, type=click.IntRange(0, 1_000_000), help="Number of replays to skip."
)
@as_json
def replays_find(
    project: int | None,
    url: str | None,
    user: str | None,
    release: str | None,
    selector: Selector | None,
    rage: bool,
    dead: bool,
    error: str | None,
    text: str | None,
    since: float | None,
    limit: int,
    offset: int,
    as_json: bool,
) -> None:
    """Search replays by their content, latest first; all given conditions must match.

    With --text, each page covers --limit replays that match all other conditions, and only their events are
    searched. The output includes the --offset of the next page. docs/evidence.md describes the JSON.
    """
    from ingest.web.evidence import find
    from ingest.web.model import Filter
    from ingest.web.present import found_dict

    chosen = Filter(
        project_id=project,
        url=url or "",
        user=user or "",
        release=release or "",
        selector=selector,
        rage=rage,
        dead=dead,
        error_id=error or "",
        since=time.time() - since if since else None,
        limit=limit,
        offset=offset,
    )
    with open_reads() as reads:
        page = find(reads, chosen, text or "")
    if as_json:
        echo_json(found_dict(page))
        return
    _print(page)


COMMANDS = replays.COMMANDS


def _print(page: FoundPage) -> None:
    console = Terminal(highlight=False, columns_without_terminal=220)
    console.print(replays_table(found.replay for found in page.found))
    for found in page.found:
        for match in found.matches:
            seconds = match.at_ms / 1000 - found.replay.started_at
            line = f"{found.replay.replay_id}  {match.event}  {seconds:.1f} s  {match.kind}  {match.title[:120]}"
            console.print(printable(line))
    if page.incomplete:
        console.print(f"partially searched, without a match: {', '.join(page.incomplete)}", style="yellow")
    if page.next_offset is not None:
        console.print(f"more replays: --offset {page.next_offset}", style="dim")
