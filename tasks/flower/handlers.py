"""Flower handlers: the buttons on a flush task's page, the endpoint for retries, and protected metrics.

Flower cannot retry a task. Sending a flush task again would have no effect, because it would belong to no chord.
The button asks the batch's reader to retry the batch.
"""

from __future__ import annotations

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
from tasks.connection import connect, fault_of
from tasks.coordination import Coordination
from tasks.flower.parked import Asset, BatchPage, ParkedPage, batch_of, operator_of
from tasks.flower.templates import with_parked_link
from tasks.loading import load_fleet
from tasks.names import sink_of
from tasks.operate import NotParked, ReaderGone, retry
from tasks.sign_in import SignInThrottled, Throttle, credentials, is_known_login

SIGNED_IN = "replays_signed_in"
ACTIONS = b'<div class="detail-actions">'


class FleetBroker:
    """Replaces Flower's `Broker`, which supports only one Sentinel and no URL options. Reads the queues over our
    connections.
    """

    def __init__(self, *_: Any, **__: Any) -> None: ...

    async def queues(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """Returns the name of each queue and the number of its waiting messages. Raises
        redis.exceptions.RedisError.
        """
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
    """Puts our handlers first, because Tornado uses the first match. Idempotent."""
    flower.views.Broker = FleetBroker
    handlers = flower.urls.handlers
    if any(getattr(handler, "handler_class", None) is RetryBatch for handler in handlers):
        return
    BaseHandler.get_current_user = _throttled(BaseHandler.get_current_user, Throttle())
    BaseHandler.set_default_headers = _unframed(BaseHandler.set_default_headers)
    BaseHandler.render_string = with_parked_link(BaseHandler.render_string)
    handlers[0:0] = [
        url(r"/parked", ParkedPage, name="parked"),
        url(r"/parked/static/([a-z.]+)", Asset, name="parked_asset"),
        url(r"/batch/(.+)", BatchPage, name="batch"),
        url(r"/retry-batch", RetryBatch, name="retry_batch"),
        url(r"/task/(.+)", FlushTaskView, name="task"),
        (r"/metrics", GuardedMetrics),
    ]


def _throttled(original: Callable[[Any], Any], throttle: Throttle) -> Callable[[Any], Any]:
    """Returns Flower's authentication with a delay after wrong passwords, as in `replays-ingest web`.

    Signed-in users have a cookie and are not delayed. Flower's own comparison fails with 500 for non-ASCII
    passwords.
    """

    def current_user(handler: Any) -> Any:
        people = handler.application.options.basic_auth
        if not people:
            return original(handler)
        given = credentials(handler.request.headers.get("Authorization", ""))
        if not given:
            raise web.HTTPError(401)
        try:
            if handler.get_secure_cookie(SIGNED_IN) is None:
                throttle.raise_if_throttled()
        except SignInThrottled as error:
            raise web.HTTPError(429, str(error)) from error
        if not is_known_login(given, people):
            throttle.failed("flower")
            raise web.HTTPError(401)
        handler.set_secure_cookie(SIGNED_IN, "1", expires_days=1, samesite="Strict")
        return original(handler) if handler.application.options.auth else True

    return current_user


def _unframed(original: Callable[[Any], None]) -> Callable[[Any], None]:
    """Forbids framing, to prevent clickjacking."""

    def set_default_headers(handler: Any) -> None:
        original(handler)
        handler.set_header("X-Frame-Options", "DENY")
        handler.set_header("Content-Security-Policy", "frame-ancestors 'none'")

    return set_default_headers


class FlushTaskView(TaskView):  # type: ignore[misc]
    """Flower's page for a flush task, with a link to its batch, and a retry button if the task failed."""

    def render_string(self, template_name: str, **kwargs: Any) -> bytes:
        """Renders the page with our buttons next to Flower's."""
        page: bytes = super().render_string(template_name, **kwargs)
        task = kwargs.get("task")
        if template_name != "task.html" or task is None or ACTIONS not in page:
            return page
        batch_id = batch_of(task)
        if batch_id is None:
            return page
        is_failed = task.state == "FAILURE" and sink_of(task.name or "") is not None
        retry = self._button(batch_id) if is_failed and not kwargs.get("read_only") else ""
        return page.replace(ACTIONS, ACTIONS + (self._link(batch_id) + retry).encode(), 1)

    def _link(self, batch_id: str) -> str:
        return (
            f'<a class="btn btn-outline-secondary" id="batch-page" '
            f'href="{xhtml_escape(self.reverse_url("batch", batch_id))}">Batch {xhtml_escape(batch_id)}</a>'
        )

    def _button(self, batch_id: str) -> str:
        return (
            f'<form method="post" action="{self.reverse_url("retry_batch")}" style="display:inline">'
            f"{self.xsrf_form_html()}"
            f'<input type="hidden" name="batch_id" value="{xhtml_escape(batch_id)}">'
            '<button class="btn btn-primary" id="retry-batch" '
            f'title="Ask the reader of {xhtml_escape(batch_id)} to try it now">Retry batch</button></form>'
        )


class RetryBatch(BaseHandler):  # type: ignore[misc]
    """The endpoint of the retry button. Flower has already checked the origin (basic auth) or token (OAuth)."""

    @web.authenticated
    async def post(self) -> None:
        """Requests the retry. Responds with 200, 404 (not parked), 409 (no reader) or 503."""
        if self.application.options.read_only:
            raise web.HTTPError(403, "Flower is read-only")
        batch_id = self.get_argument("batch_id", required=True, escape=False)
        status, text = await IOLoop.current().run_in_executor(None, self._retry, batch_id, operator_of(self))
        self.set_status(status)
        self.set_header("Content-Type", "text/html; charset=UTF-8")
        search = f"{self.reverse_url('tasks')}?search={url_escape(batch_id)}"
        self.finish(
            f"<!doctype html><title>Retry batch</title><p>{xhtml_escape(text)}</p>"
            f'<p><a href="{search}">Tasks</a> <a href="{self.reverse_url("parked")}">Parked batches</a></p>'
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
            return 503, fault_of(error).line
        finally:
            client.close()


class GuardedMetrics(Metrics):  # type: ignore[misc]
    """Requires the login for Flower's metrics, which Flower leaves open."""

    @web.authenticated
    async def get(self) -> None:
        """Serves the metrics to authenticated users."""
        await super().get()
