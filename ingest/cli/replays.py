"""The commands `replays`, `events`, `fetch` and `web`."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from ingest.cli import ranges
from ingest.cli.common import as_json, echo, echo_json, fail, settings
from ingest.cli.listing import CommandListGroup
from ingest.cli.values import OutputDirectory, ReplayId
from ingest.operate.columns import Column, FittedTable
from ingest.operate.terminal import Terminal
from ingest.operate.text import age_seconds, clock_text, runs_text, size_text, utc_text
from ingest.settings import SettingsError
from tasks.printed import printable

if TYPE_CHECKING:  # commands import their dependencies when they run
    from ingest.web.evidence import EventContext
    from ingest.web.model import Replay, Segments
    from ingest.web.timeline import Mark, Timeline

WEB_PORT = 8077
LINE_BREAK = "\n"
MINUTE_CHARACTERS = len("2026-05-01 12:00")


def _truncate_to_minute(time_text: str) -> str:
    return time_text[:MINUTE_CHARACTERS]


NO_EVENT_MESSAGE = "no event matches"
REPLAY_COLUMNS = (
    Column("replay"),
    Column("project", rank=3),
    Column("started (UTC)", rank=1, short=_truncate_to_minute),
    Column("user", rank=4, room=8),
    Column("browser", rank=11, room=8),
    Column("release", rank=12, room=8),
    Column("length", rank=2, numeric=True),
    Column("segments", rank=10, numeric=True),
    Column("pages", rank=9, numeric=True),
    Column("clicks", rank=7, numeric=True),
    Column("dead", rank=8, numeric=True),
    Column("rage", rank=6, numeric=True),
    Column("errors", rank=5, numeric=True),
)
SEGMENT_COLUMNS = (
    Column("segment"),
    Column("state"),
    Column("place"),
    Column("received (UTC)", rank=2, short=_truncate_to_minute),
    Column("stored", rank=4),
    Column("in gcs (UTC)", rank=3, short=_truncate_to_minute),
    Column("batch", rank=1),
)
project_option = click.option("--project", type=ranges.project, help="Project id.")


@contextmanager
def open_reads() -> Iterator[Any]:
    """Gives a command read access to replays, and reports a missing replay or an unreachable server in one
    line.
    """
    from ingest.web.model import NotFound, ReadError
    from ingest.web.reads import Reads

    reads = Reads(settings())
    try:
        yield reads
    except (NotFound, ReadError) as error:
        fail(str(error))
    finally:
        reads.close()


class AgeType(click.ParamType[float]):
    """An age such as `90s`, `15m`, `6h` or `7d`, converted to seconds."""

    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return age_seconds(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class ReplayMomentType(click.ParamType[str | float]):
    """A position in a replay: the id of an event, such as `4-17`, or seconds after the start, such as `12.3`."""

    name = "event"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | float:
        from ingest.web.evidence import parse_position

        try:
            return parse_position(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.group("replays", cls=CommandListGroup)
def replays_group() -> None:
    """Read ingested replays from ClickHouse and Cloud Storage."""


@replays_group.command("ls")
@project_option
@click.option("--rage", is_flag=True, help="Only replays with rage clicks.")
@click.option("--dead", is_flag=True, help="Only replays with dead clicks.")
@click.option("--errors", is_flag=True, help="Only replays with errors.")
@click.option("--release", default="", help="Only replays of this release.")
@click.option(
    "--text",
    default="",
    help="Only replays whose user, e-mail address or page URL contains this text, or whose id starts with it.",
)
@click.option("--since", type=AgeType(), help="Only replays younger than this, for example 90s, 15m, 6h or 7d.")
@click.option(
    "--limit",
    default=50,
    show_default=True,
    type=click.IntRange(1, 500),
    help="Maximum number of replays to list.",
)
@as_json
def replays_ls(
    project: int | None,
    rage: bool,
    dead: bool,
    errors: bool,
    release: str,
    text: str,
    since: float | None,
    limit: int,
    as_json: bool,
) -> None:
    """List matching replays, latest first. Counts exclude duplicates."""
    from ingest.web.model import Filter
    from ingest.web.present import page_dict

    chosen = Filter(
        project_id=project,
        rage=rage,
        dead=dead,
        errors=errors,
        release=release,
        text=text,
        since=time.time() - since if since else None,
        limit=limit,
    )
    with open_reads() as reads:
        page = reads.replays(chosen)
    if as_json:
        echo_json(page_dict(page))
        return
    console = Terminal(columns_without_terminal=220)
    console.print(replays_table(page.replays))
    if page.more:
        console.print("more replays match: raise --limit or add conditions", style="dim")


def replays_table(replays: Iterable[Replay]) -> FittedTable:
    """Returns a table with one line per replay."""
    table = FittedTable(REPLAY_COLUMNS, empty="no replay matches")
    for replay in replays:
        counts = (
            replay.segments,
            len(replay.pages),
            replay.clicks,
            replay.dead_clicks,
            replay.rage_clicks,
            replay.errors,
        )
        table.add_row(
            replay.replay_id,
            str(replay.project_id),
            utc_text(replay.started_at),
            replay.user,
            replay.browser,
            replay.release,
            clock_text(replay.duration_seconds),
            *(str(count) if count else "·" for count in counts),
        )
    return table


@replays_group.command("show")
@click.argument("replay_id", type=ReplayId())
@project_option
@as_json
def replays_show(replay_id: str, project: int | None, as_json: bool) -> None:
    """Show one replay: its properties, and its segments in order with gaps, duplicates and ingestion times."""
    from ingest.web.journey import journeys
    from ingest.web.present import replay_dict, segments_dict

    loaded = settings()
    with open_reads() as reads:
        replay = reads.replay(replay_id, project)
        segments = reads.segments(replay)
    places = [(o.partition, o.offset) for o in segments.all if o.partition is not None and o.offset is not None]
    found = segments_dict(loaded, segments, journeys(loaded, places))
    if as_json:
        echo_json({"replay": replay_dict(replay), "ingestion": found})
        return
    console = Terminal(highlight=False, columns_without_terminal=200)
    console.print(facts_text(replay, segments))
    console.print()
    console.print(segments_table(found["segments"]))
    for note in found["notes"]:
        console.print(printable(note), style="yellow")


def facts_text(replay: Replay, segments: Segments) -> Text:
    """Returns the properties of a replay, one per line, and its pages."""
    facts: dict[str, Any] = {
        "replay": replay.replay_id,
        "project": replay.project_id,
        "started (UTC)": utc_text(replay.started_at),
        "length": clock_text(replay.duration_seconds),
        "user": replay.user,
        "release": f"{replay.release} {replay.environment}".strip(),
        "browser": f"{replay.browser} on {replay.system}" if replay.browser else replay.system,
        "clicks": f"{replay.clicks}, {replay.dead_clicks} dead, {replay.rage_clicks} rage",
        "errors": replay.errors,
        "pages": replay.pages,
        "stored": f"{size_text(replay.bytes_stored)}, {size_text(replay.bytes_inflated)} inflated",
        "retention": f"{replay.retention_days} days",
        "missing": runs_text(segments.missing) or "none",
        "duplicates": runs_text(segments.duplicates) or "none",
    }
    rows = []
    for name, value in facts.items():
        texts = map(printable, value if isinstance(value, tuple) else (str(value),))
        rows.append(Text.assemble((f"{name:<14}", "bold"), f" {(LINE_BREAK + ' ' * 15).join(texts)}"))
    return Text(LINE_BREAK).join(rows)


def segments_table(segments: Iterable[dict[str, Any]]) -> FittedTable:
    """Returns a table with one line per segment."""
    table = FittedTable(SEGMENT_COLUMNS, empty="no segment")
    for segment in segments:
        place = f"{segment['partition']}/{segment['offset']}" if segment["partition"] is not None else ""
        duplicates = f" (+{len(segment['copies']) - 1})" if len(segment["copies"]) > 1 else ""
        table.add_row(
            str(segment["segment_id"]),
            segment["state"],
            place + duplicates,
            utc_text(segment["received_at"]),
            size_text(segment["bytes_stored"]) if segment["bytes_stored"] else "",
            utc_text(segment["durable_gcs_at"]),
            segment["batch"]["batch_id"] if segment["batch"] else "committed" if segment["committed"] else "",
        )
    return table


@click.command("events")
@click.argument("replay_id", type=ReplayId())
@project_option
@click.option(
    "--kind", "kinds", multiple=True, help="Only events of this kind (rage_click, network, ...); repeatable."
)
@click.option("--from-segment", default=0, type=click.IntRange(0), help="First segment.")
@click.option(
    "--around", type=ReplayMomentType(), help="Center: an event's id (4-17), or seconds after the start (12.3)."
)
@click.option(
    "--window",
    default="5s",
    show_default=True,
    type=AgeType(),
    help="Length of the window before and after --around.",
)
@as_json
def events_command(
    replay_id: str,
    project: int | None,
    kinds: tuple[str, ...],
    from_segment: int,
    around: str | float | None,
    window: float,
    as_json: bool,
) -> None:
    """Show the timeline of one replay, read from its stored segments.

    Text output contains the whole timeline. JSON output contains one page; `next_segment` is the start of the next
    page. With --around, the output contains every event within the window. docs/evidence.md describes the JSON.
    """
    from ingest.web.present import timeline_dict
    from ingest.web.timeline import KINDS

    if unknown := set(kinds) - KINDS:
        raise click.BadParameter(
            f"no such kind: {', '.join(sorted(unknown))}; choose from {', '.join(sorted(KINDS))}",
            param_hint="'--kind'",
        )
    if around is not None:
        if from_segment:
            raise click.UsageError("--around reads all segments: leave out --from-segment")
        _events_around(replay_id, project, kinds, around, round(window * 1000), as_json)
        return
    with open_reads() as reads:
        segments = reads.segments(reads.replay(replay_id, project))
        timeline = _filter_kinds(reads.timeline(segments, from_segment), kinds)
        if as_json:
            echo_json({**timeline_dict(timeline), "missing": list(segments.missing)})
            return
        console = Terminal(highlight=False, columns_without_terminal=200)
        start_ms, is_empty = timeline.start_ms, True
        while True:
            if timeline.marks:
                console.print(events_table(timeline.marks, start_ms))
                is_empty = False
            _print_incomplete(console, timeline)
            if timeline.next_segment is None:
                break
            timeline = _filter_kinds(reads.timeline(segments, timeline.next_segment), kinds)
    if is_empty:
        console.print(NO_EVENT_MESSAGE)
    if segments.missing:
        console.print(f"missing segments: {runs_text(segments.missing)}", style="yellow")


def _events_around(
    replay_id: str, project: int | None, kinds: tuple[str, ...], where: str | float, window_ms: int, as_json: bool
) -> None:
    import msgspec

    from ingest.web.evidence import events_around

    with open_reads() as reads:
        found = events_around(reads, reads.replay(replay_id, project), where, window_ms)
    if kinds:
        found.marks = [mark for mark in found.marks if mark.kind in kinds]
    if as_json:
        echo_json(msgspec.to_builtins(found))
        return
    console = Terminal(highlight=False, columns_without_terminal=200)
    console.print(events_table(found.marks, found.start_ms) if found.marks else NO_EVENT_MESSAGE)
    _print_incomplete(console, found)
    if found.missing:
        console.print(f"missing segments: {runs_text(found.missing)}", style="yellow")


def _filter_kinds(timeline: Timeline, kinds: tuple[str, ...]) -> Timeline:
    if kinds:
        timeline.marks = [mark for mark in timeline.marks if mark.kind in kinds]
    return timeline


def _print_incomplete(console: Terminal, timeline: Timeline | EventContext) -> None:
    """Prints which segments are unreadable or were read only in part."""
    for name, found in (("unreadable segments", timeline.unreadable), ("read in part", timeline.cut)):
        if found:
            console.print(f"{name}: {runs_text(found)}", style="yellow")
    if timeline.truncated:
        console.print("there are more events than are shown", style="yellow")


def events_table(marks: Iterable[Mark], start_ms: int) -> Table:
    """Returns a table with one line per event; times are in seconds from the start of the replay."""
    styles = {"bad": "red", "warn": "yellow", "": ""}
    # Without `expand`, the first two columns would shrink to nothing when the others are truncated.
    table = Table(box=None, pad_edge=False, expand=True)
    for name in ("at", "kind"):
        table.add_column(name, no_wrap=True)
    for name, share in (("what", 3), ("details", 2)):  # so that each event fits on one line of the terminal
        table.add_column(name, no_wrap=True, overflow="ellipsis", ratio=share)
    for mark in marks:
        details = [
            f"{k} {size_text(v) if 'bytes' in k and isinstance(v, (int, float)) else v}"
            for k, v in mark.detail.items()
            if v not in (None, "")
        ]
        if mark.duration_ms is not None:
            details.insert(0, f"{mark.duration_ms} ms")
        seconds = (mark.at_ms - start_ms) / 1000
        table.add_row(
            f"{seconds:9.3f}",
            mark.kind,
            printable(mark.title[:120]),
            printable(", ".join(details)[:160]),
            style=styles[mark.level],
        )
    return table


@click.command("fetch")
@click.argument("replay_id", type=ReplayId())
@project_option
@click.option("--segment", "wanted", multiple=True, type=click.IntRange(0), help="Only this segment; repeatable.")
@click.option(
    "--output",
    type=OutputDirectory(),
    default=".",
    show_default=True,
    help="Directory for the files: REPLAY-SEGMENT.json, and REPLAY-SEGMENT.mp4 for a mobile replay.",
)
@as_json
def fetch_command(
    replay_id: str, project: int | None, wanted: tuple[int, ...], output: Path, as_json: bool
) -> None:
    """Download a replay: the original rrweb events of each segment, and videos."""
    from ingest.core.stored_recording import BlobError, unpack
    from ingest.local.servers.processes import private_directory, private_file

    written: list[dict[str, Any]] = []
    unreadable: dict[int, str] = {}
    private_directory(output)
    with open_reads() as reads:
        replay = reads.replay(replay_id, project)
        segments = reads.segments(replay)
        for segment, content in reads.recordings(segments):
            if wanted and segment.segment_id not in wanted:
                continue
            try:
                if isinstance(content, BlobError):
                    raise content
                found = unpack(content)
            except BlobError as error:
                unreadable[segment.segment_id] = str(error)
                continue
            for suffix, data in (("json", found.recording), ("mp4", found.video)):
                if data is not None:
                    path = output / f"{replay.replay_id}-{segment.segment_id:04}.{suffix}"
                    with private_file(path) as opened:
                        opened.write(data)
                    written.append({"segment_id": segment.segment_id, "path": str(path), "bytes": len(data)})
    gone = [number for number in segments.missing if not wanted or number in wanted]
    if as_json:
        echo_json({"written": written, "missing": gone, "unreadable": unreadable})
    else:
        for file in written:
            echo(f"{file['path']}  {size_text(file['bytes'])}")
        if gone:
            echo(f"missing segments: {runs_text(gone)}")
        for number, reason in unreadable.items():
            echo(f"segment {number} is unreadable: {reason}")
    if not written:
        fail("no stored segments match")


@click.command("web")
@click.option(
    "--port", default=WEB_PORT, show_default=True, type=click.IntRange(0, 65535), help="Port; 0 picks a free one."
)
@click.option(
    "--no-login",
    is_flag=True,
    help="Disable the login, so that every user of this machine can see recordings.",
)
def web_command(port: int, no_login: bool) -> None:
    """Serve the replay list, the player and the operator's page to browsers on this machine.

    Prints a single-use sign-in link for a browser. The logins in REPLAYS_FLOWER_BASIC_AUTH also work; if
    any are set, the operator's page requires one of them.
    """
    from ingest.web.server import run
    from tasks.observe.logs import configure
    from tasks.sign_in import PASSWORD_CHARACTERS_MIN, is_weak, users_of

    loaded = settings()
    people = users_of(loaded.flower_basic_auth.get_secret_value())
    if any(map(is_weak, people)):
        raise SettingsError(
            "REPLAYS_FLOWER_BASIC_AUTH must be user:password, with a password of at least "
            f"{PASSWORD_CHARACTERS_MIN} characters"
        )
    configure(loaded)
    links = itertools.count()

    def ready(address: str, path: str) -> None:
        if next(links):
            echo(f"another browser  {address}{path}")
            return
        replays_login, operators_login = _logins(bool(people), no_login)
        echo(f"replays          {address}{path}  ({replays_login})")
        echo(f"operator's page  {address}/operate  ({operators_login})")
        if no_login:
            echo("every user of this machine can see the recordings", err=True)

    try:
        run(loaded, port, ready, login=not no_login)
    except OSError as error:
        raise SettingsError(
            f"cannot listen on port {port} ({error}): choose another port with --port, or stop the process "
            "that uses it"
        ) from error


def _logins(has_passwords: bool, no_login: bool) -> tuple[str, str]:
    """Describes the login that the replay pages require, and the one that the operator's page requires."""
    password = "a user and password of REPLAYS_FLOWER_BASIC_AUTH"
    link = "this link signs in one browser, once"
    if no_login:
        return "requires no login", f"requires {password}"
    if has_passwords:
        return f"{link}; or sign in at the operator's page", f"requires {password}; the link is not enough"
    return link, "after the link"


COMMANDS = (replays_group, events_command, fetch_command, web_command)
