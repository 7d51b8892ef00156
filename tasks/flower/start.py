"""Starts Flower with a password or OAuth and with our handlers.

`celery -A tasks flower` and `replays-ingest flower` both use `AuthenticatedFlower`, which refuses to start without
authentication, regardless of options, environment and configuration file. Flower does not officially support such
a subclass, so its version is pinned (2.2), and tests start Flower with each of these two commands. See
docs/decisions/026-flower-extension.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flower.app
import flower.command
from celery import Celery
from flower.app import Flower
from tornado.httpserver import HTTPServer

from tasks import dependencies
from tasks.configuration import current
from tasks.flower.handlers import extend
from tasks.flower.history import HistoryError
from tasks.flower.remember import restore_and_record_history
from tasks.flower.templates import Templates
from tasks.loading import SettingsError, load_fleet
from tasks.observe import celery_lines, logs
from tasks.observe.loops import Loop
from tasks.observe.probe_server import ensure_free
from tasks.setting_text import EMAILS
from tasks.settings import Settings
from tasks.sign_in import PASSWORD_CHARACTERS_MIN, is_weak, users_of

REQUEST_SECONDS_MAX = 30.0
TIMEOUTS = ("idle_connection_timeout", "body_timeout")
PROVIDERS = {
    "google": "flower.views.auth.GoogleAuth2LoginHandler",
    "github": "flower.views.auth.GithubLoginHandler",
    "gitlab": "flower.views.auth.GitLabLoginHandler",
    "okta": "flower.views.auth.OktaLoginHandler",
}


class FlowerRefused(SettingsError):
    """Raised if Flower cannot start or would start without authentication. The message names the setting to
    correct."""


def launch(app: Celery, settings: Settings, arguments: tuple[str, ...] = ()) -> None:
    """Runs Flower for this app until SIGTERM. `arguments` are Flower's own. Raises FlowerRefused."""
    options(settings)
    guard()
    app.start(["flower", *arguments])


def guard() -> None:
    """Makes the command `flower` use our settings as defaults and run AuthenticatedFlower. Idempotent.

    The command raises SettingsError or its subclass FlowerRefused.
    """
    if flower.command.Flower is AuthenticatedFlower:
        return
    flower.command.Flower = AuthenticatedFlower
    original: Callable[..., None] = flower.command.flower.callback

    def ours(**arguments: Any) -> None:
        current()  # refuse wrong settings before Flower starts
        for name, value in options(load_fleet()).items():
            setattr(flower.command.options, name, value)
        logs.configure(load_fleet())
        celery_lines.install()
        original(**arguments)

    flower.command.flower.callback = ours


class AuthenticatedFlower(Flower):  # type: ignore[misc]
    """Flower with our handlers. A Redis fault is logged with the same text as in workers.

    Raises FlowerRefused if Flower's options allow access without authentication, if the port is in use, or if the
    task history cannot be opened.
    """

    def __init__(self, options: Any, **others: Any) -> None:
        if options.auth:
            _check_emails(options.auth)
        else:
            _refuse_open_access(options.basic_auth or ())
        if not options.unix_socket:
            _ensure_free(options.address, options.port)
        extend()
        self._redis_watch = Loop("flower-redis", _check_redis, dependencies.INTERVAL_SECONDS)
        super().__init__(options=options, **{**others, "template_loader": Templates()})
        try:
            self._forget = restore_and_record_history(self.events, load_fleet())
        except HistoryError as error:
            raise FlowerRefused(f"{error}: set REPLAYS_FLOWER_HISTORY_PATH to a writable file") from error

    def start(self) -> None:
        """Runs until SIGTERM."""
        self._redis_watch.start()
        super().start()

    def stop(self) -> None:
        """Stops Flower, and writes the remaining events of the task history."""
        self._redis_watch.request_stop()
        super().stop()
        self._forget()

    def start_http_server(self) -> int | None:
        """Listens and logs the address. A connection that sends no complete request in time is closed."""
        flower.app.HTTPServer = partial(HTTPServer, **dict.fromkeys(TIMEOUTS, REQUEST_SECONDS_MAX))
        port: int | None = super().start_http_server()
        if port is not None:
            print(f"Flower listens on http://{self.options.address or '*'}:{port}", file=sys.stderr, flush=True)
        return port


def _check_redis() -> None:
    """Logs when a Redis fault begins and when it ends."""
    found = dependencies.redis(load_fleet())
    if found is None:
        celery_lines.connection_lines.ended()
    else:
        celery_lines.report(found)


def options(settings: Settings) -> dict[str, Any]:
    """Returns Flower's options. Raises FlowerRefused if no valid authentication is configured."""
    return {
        **_authentication(settings),
        "address": settings.flower_host,
        "port": settings.flower_port,
        "tasks_columns": "name,state,kwargs,received,started,runtime,retries,exception,worker,uuid",
        "max_tasks": 20_000,
        # If this were always true, Flower would tell all workers every few seconds to publish task events.
        "enable_events": settings.task_events,
        "purge_offline_workers": 600,
    }


def _authentication(settings: Settings) -> dict[str, Any]:
    people = users_of(settings.flower_basic_auth.get_secret_value())
    provider = settings.flower_oauth_provider
    if people or not provider:
        _refuse_open_access(people)
        return {"basic_auth": people}
    needed = {
        "auth": settings.flower_oauth_emails,
        "oauth2_key": settings.flower_oauth_key,
        "oauth2_secret": settings.flower_oauth_secret.get_secret_value(),
        "oauth2_redirect_uri": settings.flower_oauth_redirect_uri,
    }
    missing = [name for name, value in needed.items() if not value]
    if missing:
        raise FlowerRefused(f"REPLAYS_FLOWER_OAUTH_PROVIDER={provider} also needs values for {', '.join(missing)}")
    return {**needed, "auth_provider": PROVIDERS[provider]}


def _ensure_free(host: str, port: int) -> None:
    try:
        ensure_free(host, port)
    except (OSError, OverflowError) as error:
        raise FlowerRefused(
            f"Flower cannot listen on {host}:{port} ({error}): set REPLAYS_FLOWER_PORT and REPLAYS_FLOWER_HOST to "
            "a free address of this machine, or stop the process that uses it"
        ) from error


def _refuse_open_access(people: Sequence[str]) -> None:
    if not people:
        raise FlowerRefused(
            "Flower does not start without authentication: set REPLAYS_FLOWER_BASIC_AUTH=user:password, or "
            "the REPLAYS_FLOWER_OAUTH_* settings"
        )
    if any(map(is_weak, people)):
        raise FlowerRefused(
            "REPLAYS_FLOWER_BASIC_AUTH must be user:password, with a password of at least "
            f"{PASSWORD_CHARACTERS_MIN} characters"
        )


def _check_emails(emails: str) -> None:
    """Refuses patterns that match every address or none, which may be given as an option of Flower."""
    if not EMAILS.pattern.fullmatch(emails):
        raise FlowerRefused(f"REPLAYS_FLOWER_OAUTH_EMAILS or --auth: not allowed here; allowed: {EMAILS.allowed}")
