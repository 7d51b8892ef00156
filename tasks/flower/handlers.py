"""Our handlers in Flower: the retry button on a failed task's page, what it posts to, and closed metrics.

Flower itself knows no retry, and sending a flush task again would help nobody: it would be in no chord. So the
page of a failed flush task gets a button that asks the batch's reader to try the batch now.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from typing import Any

import flower.urls
import flower.views
from flower.views import BaseHandler
from flower.views.monitor import Metrics
from flower.views.tasks import TaskView
from redis.exceptions import RedisError
from tornado import web
from tornado.escape import url_escape, xhtml_escape
from tornado.ioloop import IOLoop
from tornado.web import url

from tasks.configuration import configuration
from tasks.connection import connect
from tasks.coordination import Coordination
from tasks.loading import load_fleet
from tasks.names import sink_of
from tasks.operate import NotParked, ReaderGone, retry
from tasks.sign_in import Throttle, Throttled, credentials, is_one_of

SIGNED_IN = "replays_signed_in"
ACTIONS = b'<div class="detail-actions">'


class FleetBroker:
    """Flower's view of the queues, over our own connections.

    Flower's reads the URL in its own way: of several Sentinels it asks the first alone, and it takes no option.
    """

    def __init__(self, *_: Any, **__: Any) -> None: ...

    async def queues(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """Name and number of waiting messages of each queue. Raises redis.exceptions.RedisError."""
        return await IOLoop.current().run_in_executor(None, self._queues, list(names))

    def _queues(self, names: list[str]) -> list[dict[str, Any]]:
        settings = load_fleet()
        client: Any = connect(settings, retries=0)
        prefix = configuration(settings)["broker_transport_options"]["global_keyprefix"]
        try:
            pipe = client.pipeline(transaction=False)
            for name in names:
                pipe.llen(prefix + name)
            return [
                {"name": name, "messages": messages} for name, messages in zip(names, pipe.execute(), strict=True)
            ]
        finally:
            client.close()


def extend() -> None:
    """Ours go first: Tornado takes the first handler that matches. Twice is once."""
    flower.views.Broker = FleetBroker
    handlers = flower.urls.handlers
    if any(getattr(handler, "handler_class", None) is RetryBatch for handler in handlers):
        return
    BaseHandler.get_current_user = _throttled(BaseHandler.get_current_user, Throttle())
    BaseHandler.set_default_headers = _unframed(BaseHandler.set_default_headers)
    handlers[0:0] = [
        url(r"/retry-batch", RetryBatch, name="retry_batch"),
        url(r"/task/(.+)", FlushTaskView, name="task"),
        (r"/metrics", GuardedMetrics),
    ]


def _throttled(theirs: Callable[[Any], Any], throttle: Throttle) -> Callable[[Any], Any]:
    """Flower's check of who asks, with a delay after wrong passwords, which `web` takes too.

    Whoever signed in before has a cookie and stays in, so that nobody's guesses keep operators out. Flower's own
    comparison fails with 500 for a password that is not ASCII.
    """

    def current_user(handler: Any) -> Any:
        people = handler.application.options.basic_auth
        if not people:
            return theirs(handler)
        given = credentials(handler.request.headers.get("Authorization", ""))
        if not given:
            raise web.HTTPError(401)
        try:
            if handler.get_secure_cookie(SIGNED_IN) is None:
                throttle.pass_or_raise()
        except Throttled as error:
            raise web.HTTPError(429, str(error)) from error
        if not is_one_of(given, people):
            throttle.failed("flower")
            raise web.HTTPError(401)
        handler.set_secure_cookie(SIGNED_IN, "1", expires_days=1, samesite="Strict")
        return theirs(handler) if handler.application.options.auth else True

    return current_user


def _unframed(theirs: Callable[[Any], None]) -> Callable[[Any], None]:
    """No other page shows Flower's in a frame, where a click could be lured to its buttons."""

    def set_default_headers(handler: Any) -> None:
        theirs(handler)
        handler.set_header("X-Frame-Options", "DENY")
        handler.set_header("Content-Security-Policy", "frame-ancestors 'none'")

    return set_default_headers


def batch_of(task: Any) -> str | None:
    """The batch id of a flush task as Flower knows it, from the text of its arguments."""
    if not sink_of(str(task.name or "")):
        return None
    try:
        arguments = ast.literal_eval(task.kwargs or "{}")
    except (ValueError, SyntaxError):
        return None
    batch = arguments.get("batch") if isinstance(arguments, dict) else None
    return batch if isinstance(batch, str) else None


class FlushTaskView(TaskView):  # type: ignore[misc]
    """Flower's page of one task, with a button where a batch can be retried."""

    def render_string(self, template_name: str, **kwargs: Any) -> bytes:
        """The page; the button goes where Flower has its own."""
        page: bytes = super().render_string(template_name, **kwargs)
        task = kwargs.get("task")
        if template_name != "task.html" or task is None or task.state != "FAILURE" or kwargs.get("read_only"):
            return page
        batch_id = batch_of(task)
        if batch_id is None or ACTIONS not in page:
            return page
        return page.replace(ACTIONS, ACTIONS + self._button(batch_id).encode(), 1)

    def _button(self, batch_id: str) -> str:
        return (
            f'<form method="post" action="{self.reverse_url("retry_batch")}" style="display:inline">'
            f"{self.xsrf_form_html()}"
            f'<input type="hidden" name="batch_id" value="{xhtml_escape(batch_id)}">'
            '<button class="btn btn-primary" id="retry-batch" '
            f'title="Ask the reader of {xhtml_escape(batch_id)} to try it now">Retry batch</button></form>'
        )


class RetryBatch(BaseHandler):  # type: ignore[misc]
    """The button. Flower checks the origin (basic auth) or the token (OAuth) before it comes here."""

    @web.authenticated
    async def post(self) -> None:
        """Asks the batch's reader, and says what came of it: 200, 404 (not parked), 409 (no reader), 503."""
        if self.application.options.read_only:
            raise web.HTTPError(403, "Flower is read-only")
        batch_id = self.get_argument("batch_id", required=True, escape=False)
        status, text = await IOLoop.current().run_in_executor(None, self._retry, batch_id, self._who())
        self.set_status(status)
        self.set_header("Content-Type", "text/html; charset=UTF-8")
        search = f"{self.reverse_url('tasks')}?search={url_escape(batch_id)}"
        self.finish(
            f"<!doctype html><title>Retry batch</title><p>{xhtml_escape(text)}</p>"
            f'<p><a href="{search}">Tasks</a></p>'
        )

    def _retry(self, batch_id: str, by: str) -> tuple[int, str]:
        settings = load_fleet()
        client = connect(settings)
        try:
            return 200, retry(Coordination(client, settings), batch_id, by)
        except NotParked as error:
            return 404, str(error)
        except ReaderGone as error:
            return 409, str(error)
        except RedisError as error:
            return 503, f"redis does not answer: {error}"
        finally:
            client.close()

    def _who(self) -> str:
        """For the audit: the OAuth address, or the user of the basic authentication."""
        if isinstance(self.current_user, str):
            return self.current_user
        return credentials(self.request.headers.get("Authorization", "")).partition(":")[0] or "flower"


class GuardedMetrics(Metrics):  # type: ignore[misc]
    """Flower leaves its metrics open even with a password; task names and hosts are nobody's business."""

    @web.authenticated
    async def get(self) -> None:
        """The same text, for those who may enter."""
        await super().get()
