"""`replays-ingest` without a command: the reader and its dry run."""

from __future__ import annotations

import click

from ingest.cli.common import EXIT_FAILED, echo_json, fail
from ingest.cli.first_steps import no_broker_message
from ingest.operate.terminal import Terminal
from ingest.settings import Settings
from tasks.connection import refuse_unsupported


def reader(loaded: Settings) -> int:
    """Consumes until SIGTERM. Returns the exit code.

    Raises RedisRefused; click prints this error and exits with code 2.
    """
    from ingest.observe.health import HTTP_SETTING
    from ingest.reader import process
    from tasks.observe.probe_server import ensure_probes_can_listen

    try:
        refuse_unsupported(loaded)
        # This check comes first, because invalid settings (exit code 2) take precedence over missing servers.
        ensure_probes_can_listen(loaded.http_host, loaded.http_port, setting=HTTP_SETTING)
        if text := no_broker_message(loaded):
            click.echo(text, err=True)
            return EXIT_FAILED
        return process.run(loaded)
    except process.ReaderFailed as error:
        fail(str(error))


def dry_run(loaded: Settings, messages: int, as_json: bool) -> int:
    """Reads, parses and batches messages in memory. Returns the exit code."""
    from ingest.operate.dry_run import DryRun
    from ingest.reader.assignment import ConsumerFailed
    from tasks.kafka.topics import ClusterUnreachable
    from tasks.observe import logs

    logs.configure(loaded)
    run = DryRun(loaded)
    try:
        run.run(messages_max=messages, seconds_max=60.0)
    except (ConsumerFailed, ClusterUnreachable) as failure:
        fail(str(failure))
    if as_json:
        echo_json(run.as_dict())
    else:
        Terminal().print(run.render())
    return 0
