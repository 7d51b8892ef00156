"""Celery's configuration, computed from `tasks.settings`.

`configuration` is a pure function of the settings. `celeryconfig.py` uses `current`, which reads the environment
when Celery requests a value, not on import. The measurements behind the choice of the Celery version and of the
worker pool are in docs/decisions/022-celery-5.6.md and docs/decisions/023-prefork.md.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from celery import Celery
from celery.exceptions import ImproperlyConfigured, SecurityError
from kombu import Queue

from tasks.broker import LINK_OPTION, TRANSPORT
from tasks.connection import link_of
from tasks.cores import processes
from tasks.kafka.options import is_plain, producer_options
from tasks.loading import SettingsError, load_fleet
from tasks.names import CONTROL_QUEUE, flush_queue, flush_task
from tasks.publish_only import BACKEND
from tasks.settings import Settings
from tasks.wire import SinkName


def time_limits(settings: Settings) -> tuple[float, float]:
    """Returns the soft and hard time limits of one run of a task, in seconds.

    A run may write more than once (bisection, partial failures). A run starts no sink call after three times the
    call timeout, but may still write dead letters after that time. Only code that ignores its deadline reaches the
    soft limit, and only code that cannot be interrupted reaches the hard limit. The prefork pool enforces both
    limits.
    """
    soft = 5 * settings.sink_timeout_seconds + 1
    return soft, soft + settings.sink_timeout_seconds + 1


def configuration(settings: Settings) -> dict[str, Any]:
    """Returns the configuration of workers and of the reader's publisher."""
    soft, hard = time_limits(settings)
    link = link_of(settings)
    config: dict[str, Any] = {
        # These URLs are only labels. Connections are created from the `Link` object in the transport options,
        # which contains the password (docs/redis.md).
        "broker_url": link.address.label,
        "broker_transport": TRANSPORT,
        # This backend counts the tasks of chords and keeps no results.
        "result_backend": f"{BACKEND}+{link.address.label}",
        "imports": ("tasks.flush", "tasks.control"),
        # JSON only: messages are data, never code.
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        "result_accept_content": ["json"],
        "event_serializer": "json",
        "enable_utc": True,
        "timezone": "UTC",
        # At-least-once execution: a task is acknowledged only after it has finished, and is requeued if its child
        # process is lost. `task_starts_max` (tasks/flush.py) limits how often a task may kill its child; Celery
        # 5.6 has no such limit.
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "task_ignore_result": True,
        "task_track_started": False,
        # Chord counters expire after this time. By then the reader has long since restarted an incomplete chord.
        "result_expires": 6 * 3600,
        "worker_prefetch_multiplier": 1,
        "task_soft_time_limit": soft,
        "task_time_limit": hard,
        "task_queues": [
            *(Queue(flush_queue(sink), routing_key=flush_queue(sink)) for sink in SinkName),
            Queue(CONTROL_QUEUE, routing_key=CONTROL_QUEUE),
        ],
        "task_default_queue": CONTROL_QUEUE,
        "task_create_missing_queues": False,
        "task_routes": {flush_task(sink): {"queue": flush_queue(sink)} for sink in SinkName},
        # Flower's list of tasks is derived from these events. Without the remote-control socket, a worker with a
        # full prefetch window does not notice that Redis is unreachable.
        "worker_send_task_events": settings.task_events,
        "task_send_sent_event": False,
        "worker_enable_remote_control": True,
        "worker_concurrency": processes(settings),
        "worker_hijack_root_logger": False,
        "worker_soft_shutdown_timeout": min(settings.sink_timeout_seconds, 30.0),
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_transport_options": {
            "global_keyprefix": f"{settings.key_prefix}:celery:",
            # kombu checks for expired messages every interval x throttle seconds, under a mutex that a killed
            # worker may still hold.
            "visibility_timeout": settings.task_visibility_seconds,
            "unacked_restore_interval": max(1, min(5, settings.task_visibility_seconds // 4)),
            "unacked_restore_throttle": 1,
            "unacked_mutex_expire": 30,
            "health_check_interval": link.address.health_check_seconds,
            LINK_OPTION: link,
            # Base64 would make messages a third longer and unreadable in redis-cli.
            "body_encoding": "utf-8",
        },
        "result_backend_transport_options": {
            "global_keyprefix": f"{settings.key_prefix}:chord:",
            LINK_OPTION: link,
            "retry_policy": {"max_retries": 5, "interval_start": 0, "interval_step": 0.2, "interval_max": 1},
        },
        # A publisher that cannot reach Redis fails within seconds; the core retries the batch.
        "task_publish_retry_policy": {
            "max_retries": 2, "interval_start": 0, "interval_step": 0.2, "interval_max": 0.5,
        },
    }  # fmt: skip
    if settings.task_security_key_file is not None:
        config |= signed(settings)
    return config


def secure(app: Celery) -> None:
    """Enables signing and verification of messages. Raises SettingsError for unusable certificates."""
    try:
        app.setup_security()
    except (SecurityError, ImproperlyConfigured, OSError) as error:
        raise SettingsError(
            f"wrong setting: REPLAYS_TASK_SECURITY_*: messages cannot be signed ({' '.join(str(error).split())}): "
            "name a key, its certificate, and a glob of trusted certificates in PEM that are valid today"
        ) from error


def signed(settings: Settings) -> dict[str, Any]:
    """Returns the settings for signed messages, which are accepted only if their certificate is in the store."""
    return {
        "security_key": str(settings.task_security_key_file),
        "security_certificate": str(settings.task_security_certificate_file),
        "security_cert_store": settings.task_security_store,
        "task_serializer": "auth",
        "event_serializer": "auth",
        "accept_content": ["auth"],
    }


@cache
def current() -> dict[str, Any]:
    """Returns the configuration of this process, from its environment. Raises SettingsError."""
    settings = load_fleet()
    if not is_plain(settings):
        from tasks.kafka.usable import verify_producer

        verify_producer(producer_options(settings))
    return configuration(settings)
