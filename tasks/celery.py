"""The Celery app, found by `celery -A tasks worker` and `celery -A tasks flower`."""

from __future__ import annotations

import gc
import sys
from typing import Any

from celery import Celery
from celery.signals import worker_init

from tasks import dependencies
from tasks import messages as messages
from tasks.configuration import secure
from tasks.connection import RedisRefused, refuse_unsupported
from tasks.loading import SettingsError, load_fleet
from tasks.names import flush_queue
from tasks.observe import celery_lines, logs, presence, watch
from tasks.sinks import build

app = Celery("tasks")
app.config_from_object("celeryconfig")


@app.on_after_configure.connect
def verify(sender: Celery, **_: Any) -> None:
    """If `task_security_*` is set, messages are signed and only signed messages are accepted."""
    if sender.conf.task_serializer == "auth":
        try:
            secure(sender)
        except SettingsError as error:
            error.show()
            raise SystemExit(error.exit_code) from error  # Celery would log any other exception and continue


@worker_init.connect(weak=False)
def preload(sender: Any, **_: Any) -> None:
    """Logs each unavailable server on which the consumed queues depend. Then loads the client libraries in the
    parent, so that all pool processes share the memory pages of these libraries.

    Exits with 2 if the kind of Redis is not supported.
    """
    settings = load_fleet()
    logs.configure(settings)
    queues = sender.app.amqp.queues.consume_from
    sinks = [name for name in settings.sinks if flush_queue(name) in queues]
    for fault in dependencies.faults(settings, dependencies.checks_of_worker(sinks)):
        celery_lines.report(fault)
    try:
        refuse_unsupported(settings)
    except RedisRefused as refused:
        refused.show()
        raise SystemExit(refused.exit_code) from refused  # Celery would log any other exception and continue
    for name in sinks:
        build(name, settings)
    warm_cffi()
    gc.collect()
    gc.freeze()  # garbage collection in a child would write to every shared page with objects


def warm_cffi() -> None:
    """Loads cffi's parser for C declarations in the parent process, before it forks.

    Each pool process parses the C declaration of `prctl`, with which it arranges to exit when its parent exits
    (`billiard.util`). If each process loaded the parser itself, it would use 40 ms more CPU and 11 MB more
    unshared memory.
    """
    if "cffi" in sys.modules:
        sys.modules["cffi"].FFI().cdef("int prctl (int __option, ...);")


if "flower.command" in sys.modules:  # `celery` loads its commands before it looks for an app
    from tasks.flower.start import guard

    guard()
watch.connect()
presence.connect()
