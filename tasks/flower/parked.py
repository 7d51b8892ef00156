"""Flower's page of parked batches, and the page of one batch: chords, retries, projects, operators' actions.

The only way to change anything is the form on each page, which retries or abandons batches and records a reason
(`tasks.bulk`). Error texts and ids are untrusted: templates escape them, and the pages' content security policy
forbids inline scripts and styles.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from flower.views import BaseHandler
from redis.exceptions import RedisError
from tornado import web
from tornado.ioloop import IOLoop

from tasks.batch_history import BatchHistory, batch_history
from tasks.bulk import BATCHES_MAX, Outcomes, abandon_all, retry_all
from tasks.connection import connect, fault_of
from tasks.coordination import Coordination
from tasks.flower.selection import (
    AGE_CHOICES,
    ParkedBatch,
    Selection,
    duration_text,
    parked_rows,
    selection,
)
from tasks.kafka.decisions import DecisionsUnreadable
from tasks.kafka.producing import NotProduced
from tasks.kafka.ranges import RangeError
from tasks.loading import load_fleet
from tasks.names import ControlTask, sink_of
from tasks.printed import printable, without_secrets
from tasks.sign_in import credentials
from tasks.sinks import build
from tasks.wire import ChordName, SinkName, batch_id_of

ASSETS = Path(__file__).parent / "static"
KINDS = {".css": "text/css", ".js": "text/javascript"}
SHOWN_MAX = BATCHES_MAX
REASON_CHARACTERS_MAX = 1000
ID_CHARACTERS_MAX = 400
SHOWN_REFUSALS_MAX = 20
AUDIT_ENTRIES_MAX = 2000
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Run:
    """A flush task or callback, as recorded by Flower."""

    uuid: str
    name: str
    chord: str
    task: str
    state: str
    retries: int
    at: float
    runtime_seconds: float | None
    exception: str


def operator_of(handler: Any) -> str:
    """Returns the name of the operator for the audit trail: the OAuth address or the basic-auth user."""
    if isinstance(handler.current_user, str):
        return handler.current_user
    return credentials(handler.request.headers.get("Authorization", "")).partition(":")[0] or "flower"


def arguments_of(task: Any) -> dict[str, Any]:
    """Returns the keyword arguments of a flush task, parsed from Flower's record; empty for other tasks."""
    if not sink_of(str(task.name or "")):
        return {}
    try:
        arguments = ast.literal_eval(task.kwargs or "{}")
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return {}
    return arguments if isinstance(arguments, dict) else {}


def batch_of(task: Any) -> str | None:
    """Returns the batch id of a flush task or of a chord's callback; None for other tasks."""
    batch = arguments_of(task).get("batch")
    if isinstance(batch, str):
        return batch
    chord = chord_of(task)
    return batch_id_of(chord.batch) if chord is not None else None


def chord_of(task: Any) -> ChordName | None:
    """Returns the chord whose callback this task is, or None. The chord's name is the task id of `complete` and
    the argument of `chord_failed`."""
    text = str(task.uuid)
    if task.name == ControlTask.CHORD_FAILED:
        try:
            text = str(ast.literal_eval(task.args)[0])
        except (ValueError, SyntaxError, TypeError, IndexError, KeyError, RecursionError, MemoryError):
            return None
    try:
        return ChordName.parse(text)
    except ValueError:
        return None


class _Page(BaseHandler):  # type: ignore[misc]
    """The base class of both pages: content security policy, blocking calls in threads, error responses."""

    def prepare(self) -> None:
        """Sets a content security policy that would be too strict for Flower's own pages."""
        super().prepare()
        self.set_header("Content-Security-Policy", POLICY)
        self.set_header("Cache-Control", "no-store")

    async def work(self, function: Callable[[Any, Coordination], T]) -> T:
        """Calls `function(settings, coordination)` in a thread. Raises HTTPError 503."""

        def connected() -> T:
            settings = load_fleet()
            client = connect(settings)
            try:
                return function(settings, Coordination(client, settings))
            finally:
                client.close()

        try:
            return await IOLoop.current().run_in_executor(None, connected)
        except RedisError as error:
            raise web.HTTPError(503, fault_of(error).line) from error
        except (NotProduced, RangeError, DecisionsUnreadable) as error:
            raise web.HTTPError(503, f"the audit trail: {error}") from error

    @property
    def is_read_only(self) -> bool:
        return bool(self.application.options.read_only)

    async def apply_action(self, batch_ids: list[str]) -> tuple[str, dict[str, str]]:
        """Performs the form's action; returns the result and the refused batches. Raises HTTPError."""
        if self.is_read_only:
            raise web.HTTPError(403, "Flower is read-only")
        what = self.get_argument("action", "", escape=False)
        reason = self.get_argument("reason", "", escape=False)
        if len(reason) > REASON_CHARACTERS_MAX:
            raise web.HTTPError(400, f"the reason must have at most {REASON_CHARACTERS_MAX} characters")
        if what not in ("retry", "abandon"):
            raise web.HTTPError(400, "the action must be retry or abandon")
        by = operator_of(self)

        def perform(settings: Any, coordination: Coordination) -> Outcomes:
            if what == "retry":
                return retry_all(coordination, batch_ids, by, reason)
            letters = build(SinkName.DEAD_LETTER, settings)
            try:
                return abandon_all(settings, coordination, letters, batch_ids, reason, by)
            finally:
                letters.close()

        try:
            outcomes = await self.work(perform)
        except ValueError as error:
            raise web.HTTPError(400, str(error)) from error
        return _result(what, outcomes), outcomes.refused

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Flower shows the error text only for 403 and 404."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        if status_code in (400, 503) and isinstance(error, web.HTTPError):
            if not hasattr(self, "_current_user"):
                self.current_user = None
            self.set_status(status_code)
            self.render("404.html", message=printable(without_secrets(error.log_message or "")))
            return
        super().write_error(status_code, **kwargs)


class ParkedPage(_Page):
    """The list of parked batches, with filters and one form for the selected batches."""

    @web.authenticated
    async def get(self) -> None:
        """The list."""
        await self._show(self._selection())

    @web.authenticated
    async def post(self) -> None:
        """Retries or abandons the selected batches, or all that match the filters."""
        chosen = self._selection()
        if self.get_argument("scope", "", escape=False) == "all":
            seen_until = self.get_argument("seen_until", "0", escape=False)
            batch_ids = await self.work(lambda _, coordination: _matching(coordination, chosen, seen_until))
        else:
            batch_ids = [one[:ID_CHARACTERS_MAX] for one in self.get_arguments("batch_id")]
        result, refused = await self.apply_action(batch_ids)
        await self._show(chosen, result, refused)

    def _selection(self) -> Selection:
        fields = (self.get_argument(name, "", escape=False) for name in ("sink", "text", "age"))
        try:
            return selection(*fields)
        except ValueError as error:
            raise web.HTTPError(400, str(error)) from error

    async def _show(self, chosen: Selection, result: str = "", refused: dict[str, str] | None = None) -> None:
        def read_page_data(_: Any, coordination: Coordination) -> tuple[list[ParkedBatch], float]:
            found, now = coordination.parked(), coordination.now()
            return parked_rows(found.values(), now), now

        rows, now = await self.work(read_page_data)
        matching = [row for row in rows if chosen.matches(row)]
        self.render(
            "parked.html",
            rows=matching[:SHOWN_MAX],
            matching=len(matching),
            total=len(rows),
            now=now,
            chosen=chosen,
            sinks=tuple(SinkName),
            ages=AGE_CHOICES,
            result=result,
            refused=list((refused or {}).items())[:SHOWN_REFUSALS_MAX],
            read_only=self.is_read_only,
            length=duration_text,
        )


_Looked = tuple[ParkedBatch | None, BatchHistory | None, list[dict[str, str]]]


class BatchPage(_Page):
    """The page of one batch: whether it is parked, its chords, the runs that Flower saw, and the operators'
    actions.
    """

    @web.authenticated
    async def get(self, batch_id: str) -> None:
        """The page."""
        await self._show(batch_id)

    @web.authenticated
    async def post(self, batch_id: str) -> None:
        """Retries or abandons this batch."""
        result, refused = await self.apply_action([batch_id])
        await self._show(batch_id, result, refused)

    async def _show(self, batch_id: str, result: str = "", refused: dict[str, str] | None = None) -> None:
        if len(batch_id) > ID_CHARACTERS_MAX:
            raise web.HTTPError(404, "a batch id has at most 400 characters")

        def read_page_data(
            settings: Any, coordination: Coordination
        ) -> tuple[ParkedBatch | None, BatchHistory | None, list[dict[str, str]]]:
            found, now = coordination.parked(), coordination.now()
            entry = found.get(batch_id)
            parked = parked_rows([entry], now) if entry is not None else []
            reference = parked[0].reference if parked else ""
            told = batch_history(coordination.client, settings, batch_id, reference)
            actions = [one for one in coordination.audited(AUDIT_ENTRIES_MAX) if _concerns(one, batch_id)]
            return (parked[0] if parked else None), told, actions

        parked, told, actions = await self.work(read_page_data)
        runs = runs_of(self.application.events.state.tasks, batch_id)
        if parked is None and told is None and not runs and not actions:
            raise web.HTTPError(
                404, f"Nothing is known of batch {printable(batch_id)}: it settled over an hour ago"
            )
        self.render(
            "batch.html",
            batch_id=batch_id,
            parked=parked,
            told=told,
            runs=runs,
            actions=actions,
            result=result,
            refused=list((refused or {}).items()),
            read_only=self.is_read_only,
            length=duration_text,
            of_action=_action_text,
        )


class Asset(BaseHandler):  # type: ignore[misc]
    """The pages' style sheet and script, behind the login like every page."""

    names: ClassVar[frozenset[str]] = frozenset(path.name for path in ASSETS.iterdir() if path.suffix in KINDS)

    @web.authenticated
    def get(self, name: str) -> None:
        """The file."""
        if name not in self.names:
            raise web.HTTPError(404)
        path = ASSETS / name
        self.set_header("Content-Type", KINDS[path.suffix])
        self.set_header("Cache-Control", "no-cache")
        self.finish(path.read_bytes())


def runs_of(tasks: Any, batch_id: str) -> list[Run]:
    """Returns the flush tasks and callbacks of this batch, in the order of their chords."""
    by_token: dict[str, str] = {}
    found: list[Run] = []
    known = getattr(tasks, "data", tasks)  # does not change the order in which Flower evicts tasks
    for uuid, task in list(known.items()):
        if batch_of(task) != batch_id:
            continue
        chord = chord_of(task)
        if chord is not None:
            by_token[chord.token] = f"{chord.stage}, attempt {chord.attempt}"
        found.append(_run(uuid, task, chord))
    named = [replace(run, chord=by_token.get(run.chord, "")) for run in found]
    return sorted(named, key=lambda run: run.at)


def _run(uuid: str, task: Any, chord: ChordName | None) -> Run:
    token = chord.token if chord is not None else uuid.rpartition("-")[0]
    runtime = getattr(task, "runtime", None)
    return Run(
        uuid=uuid,
        name=str(task.name or ""),
        chord=token,
        task=str(arguments_of(task).get("task", "")) if chord is None else "",
        state=str(task.state),
        retries=int(getattr(task, "retries", 0) or 0),
        at=float(task.received or task.timestamp or 0.0),
        runtime_seconds=float(runtime) if runtime is not None else None,
        exception=printable(without_secrets(str(task.exception or "")))[:500],
    )


def _matching(coordination: Coordination, chosen: Selection, seen_until: str) -> list[str]:
    """Returns the matching batches that were already parked when the page was rendered, because the operator has
    not seen any others."""
    try:
        until = float(seen_until)
    except ValueError:
        until = 0.0
    now = coordination.now()
    rows = parked_rows(coordination.parked().values(), now)
    return [row.batch_id for row in rows if chosen.matches(row) and now - row.parked_seconds <= until]


def _result(what: str, outcomes: Outcomes) -> str:
    done = len(outcomes.done)
    count = f"{done} batch{'' if done == 1 else 'es'}"
    text = {
        "retry": f"{count}: the readers were asked to retry.",
        "abandon": f"{count} abandoned: the messages are dead letters.",
    }[what]
    return text + (f" {len(outcomes.refused)} refused." if outcomes.refused else "")


def _concerns(action: dict[str, str], batch_id: str) -> bool:
    return batch_id in action.get("batch_id", "").split(",")


def _action_text(action: dict[str, str], names: Iterable[str] = ("reason", "batches", "messages", "gone")) -> str:
    """Returns the details of an audit entry, without the list of batches."""
    return ", ".join(f"{name} {action[name]}" for name in names if action.get(name))
