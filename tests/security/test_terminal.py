"""Every command makes external text printable, so that the terminal does not interpret control sequences."""

from __future__ import annotations

import io
import json
import logging
import re
from dataclasses import fields
from typing import Any

import pytest
import structlog
from rich.console import RenderableType
from rich.text import Text

from ingest.cli.common import echo, echo_json, fail
from ingest.cli.replays import events_table, facts_text, replays_table, segments_table
from ingest.observe.snapshot import Snapshot
from ingest.operate import backfill, retention, shadow
from ingest.operate.backfill.outcome import Difference as Rebuilt
from ingest.operate.check import Finding, Severity
from ingest.operate.inspect import describe, render
from ingest.operate.reconcile.account import Account, MissingItem, Tally
from ingest.operate.reconcile.problem import Problem
from ingest.operate.reconcile.render import render as render_account
from ingest.operate.reconcile.topic import Span
from ingest.operate.status import ParkedStatus, ReaderStatus, RedisStatus, Status
from ingest.operate.terminal import Terminal
from ingest.operate.top import page
from ingest.reader.configuration import rules_of
from ingest.settings import Settings
from ingest.web.model import Replay, SegmentFacts, Segments, SegmentState
from ingest.web.timeline import Mark, Timeline
from tasks.errors import shortened
from tasks.observe.logs import configure
from tests.kit.stored_replays import message

HOSTILE = {
    "letters without ink": "a\u115f\u1160\u3164\uffa0\u2800\u034fb",
    "a pile of marks": "z" + "\u0300\u0489" * 150 + "z",
    "clipboard": "\x1b]52;c;ZXZpbA==\x07",
    "clear the screen": "\x1b[2J\x1b[H",
    "title": "\x1b]0;owned\x1b\\",
    "link": "\x1b]8;;http://evil.example\x1b\\here\x1b]8;;\x1b\\",
    "device control": "\x1bP+q544e\x1b\\",
    "C1 sequence": "\x9b2J\x9d52;c;ZXZpbA==\x9c\x90",
    "backspaces": "good\b\b\b\bevil",
    "delete and null": "a\x7f\x00b",
    "carriage return": "real\rfake",
    "right to left": "gpj.\u202eexe\u202c",
    "isolates": "\u2066a\u2067b\u2069\u200e\u200f\u061c",
    "no width": "a\u200bb\u200dc\u2060d\ufeffe",
    "line separators": "a\u2028b\u2029c\x85d\x0be\x0cf",
    "tags": "a\U000e0041\U000e007fb",
    "markup": "[link=http://evil.example]here[/link][/][blink]x",
    "half a character": "\ud83d",
}


def displayed_output(what: RenderableType | str) -> str:
    """Returns the output as displayed on a terminal without colors."""
    stream = io.StringIO()
    Terminal(file=stream, width=600, force_terminal=True, color_system=None, legacy_windows=False).print(what)
    return stream.getvalue()


def unsafe_characters(text: str) -> set[str]:
    """Returns the characters of the output that control the terminal or mislead the reader."""
    inkless = "\u034f\u115f\u1160\u2800\u3164\uffa0"
    piles = set(re.findall(r"[\u0300-\u036f\u0483-\u0489]{5,}", text))
    return piles | {each for each in text if each in inkless or not (each.isprintable() or each == "\n")}


def a_status(text: str) -> Status:
    """A status in which every attacker-controlled field is `text`."""
    reader = ReaderStatus(reader=text, topic=text, host=text, snapshot=Snapshot(now=0.0, halted=text))
    parked: dict[str, Any] = dict.fromkeys(("attempt", "messages", "size_bytes", "parked_at", "retry_at"), 1)
    batch = ParkedStatus(batch_id=text, stage=text, reader=text, error=text, **parked)  # type: ignore[arg-type]
    memory: dict[str, Any] = dict.fromkeys(RedisStatus.__struct_fields__, 0)
    return Status(
        at=0.0, readers=(reader,), sinks=(), parked=(batch,), redis=RedisStatus(**memory), rejects={text: 1}
    )


def a_replay(text: str) -> Replay:
    """A replay in which every string is `text`."""
    values: dict[str, Any] = {each.name: text if each.type == "str" else 1 for each in fields(Replay)}
    return Replay(**{**values, "pages": (text, text), "is_video": False})


def an_account(text: str) -> Account:
    """A report in which every string is `text`."""
    missing = MissingItem(text, text, Problem.MISSING, 0, 0, text)
    return Account(
        topic=text,
        spans=[Span(0, 0, 1)],
        sinks={text: Tally(1, 1)},
        examples=[missing],
        unrepaired=[missing],
        failures=[text],
        notes=[text],
    )


def a_comparison(text: str) -> shadow.Comparison:
    """A comparison in which every string is `text`."""
    difference = shadow.Difference(shadow.Kind.DIFFERS, text, text, text, text, 0, 0, 1, text, 0)
    sinks = {text: shadow.Tally(1, differs=1)}
    return shadow.Comparison(text, text, [Span(0, 0, 1)], sinks=sinks, differences=[difference], notes=[text])


def an_outcome(text: str) -> backfill.Outcome:
    """An outcome in which every string is `text`."""
    found = backfill.Outcome(dry_run=True, failures=[text], notes=[text])
    found.note("without_rows", text)
    found.differences.append(Rebuilt(Problem.MISSING, text, text, text, 1, text, 0))
    return found


def an_audit(text: str) -> retention.Audit:
    """An audit in which every string is `text`."""
    kept = [retention.RetentionFinding(kind, text) for kind in retention.Kind]
    return retention.Audit(text, 2.0, examples=kept, notes=[text])


def a_timeline(text: str) -> Timeline:
    """One mark, with `text` in every field that a recording controls."""
    mark = Mark(at_ms=1, kind=text, segment_id=0, title=text, detail={"url": text, text: 1})
    return Timeline(0, 1, [mark], [], [], 0, {}, truncated=False)


def a_message(text: str) -> RenderableType:
    """The output of `inspect` and `dlq show` for a message with `text` in every possible field."""
    events = [
        {"type": 5, "timestamp": 1_700_000_000_000, "data": {"tag": "breadcrumb", "payload": {"message": text}}}
    ]
    document = {"user": {"id": text}, "urls": [text], "release": text, "environment": text}
    return render(describe(message("a" * 32, 0, events, document=document), rules_of(Settings())))


def a_segment(text: str) -> RenderableType:
    """Returns one line of `replays show`."""
    row = {"segment_id": 0, "state": text, "partition": None, "copies": (), "received_at": None, "bytes_stored": 0}
    return segments_table([{**row, "durable_gcs_at": None, "batch": {"batch_id": text}, "committed": False}])


SEGMENTS = Segments((SegmentFacts(0, SegmentState.STORED),))
PAGES = {
    "replays ls": lambda text: replays_table([a_replay(text)]),
    "replays show": lambda text: facts_text(a_replay(text), SEGMENTS),
    "replays show, segments": a_segment,
    "events": lambda text: events_table(a_timeline(text).marks, 0),
    "status and top": lambda text: page(a_status(text)),
    "reconcile": lambda text: render_account(an_account(text)),
    "reconcile --expired": lambda text: retention.render(an_audit(text)),
    "shadow": lambda text: shadow.render(a_comparison(text)),
    "backfill": lambda text: backfill.render(an_outcome(text)),
    "inspect and dlq show": a_message,
    "check": lambda text: Finding(text, Severity.BAD, text, text).line(),
    "a line": lambda text: text,
    "styled": lambda text: Text(text, style="bold"),
}


@pytest.mark.parametrize("place", PAGES)
@pytest.mark.parametrize("attack", [name for name in HOSTILE if name != "half a character"])
def test_no_page_of_a_command_steers_the_terminal(place: str, attack: str):
    """The output of every command is printable text, whatever outsiders put into the fields that they control."""
    shown = displayed_output(PAGES[place](f"begin {HOSTILE[attack]} end"))

    assert unsafe_characters(shown) == set()
    assert "begin" in shown
    if attack == "markup":
        assert "[blink]" in shown


@pytest.mark.parametrize("attack", HOSTILE)
def test_no_line_of_a_command_steers_the_terminal(attack: str, capsys: pytest.CaptureFixture[str]):
    """A line of output, an error and a JSON document are each one line of printable text."""
    echo(f"{HOSTILE[attack]}\nforged line")
    with pytest.raises(SystemExit):
        fail(f"{HOSTILE[attack]}\nforged line")
    echo_json({HOSTILE[attack]: [HOSTILE[attack]]})

    printed = capsys.readouterr()
    lines, errors = printed.out.splitlines(), printed.err.splitlines()
    assert (len(lines), len(errors)) == (2, 1)
    assert unsafe_characters("".join(lines + errors)) == set()
    assert lines[1].isascii()
    assert json.loads(lines[1]) == {HOSTILE[attack]: [HOSTILE[attack]]}
    assert unsafe_characters(shortened(HOSTILE[attack])) == set()


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_log_line_steers_the_terminal(log_format: Any):
    """A log line is printable text, even if a value, the message or an exception contains hostile text."""
    root = logging.getLogger()
    before = root.handlers[:]
    stream = io.StringIO()
    text = "".join(HOSTILE.values())
    try:
        configure(Settings(log_format=log_format), stream)
        structlog.get_logger("test").warning("something", url=text, several=[text], by_name={text: text})
        try:
            raise ValueError(text)
        except ValueError:
            logging.getLogger("library").exception("failed: %s", text)
    finally:
        root.handlers[:] = before
        structlog.reset_defaults()

    assert "something" in stream.getvalue()
    assert unsafe_characters(stream.getvalue()) == set()
