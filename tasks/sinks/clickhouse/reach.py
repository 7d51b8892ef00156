"""Tests whether ClickHouse responds and accepts the login, with a query that neither reads nor writes data."""

from __future__ import annotations

import time

from tasks.errors import shortened
from tasks.faults import WHAT_TO_DO, Cause, Fault, Server, fault
from tasks.printed import without_secrets
from tasks.settings import Settings
from tasks.sinks.clickhouse.errors import REFUSED_LOGIN
from tasks.sinks.clickhouse.probe import failure_of_query
from tasks.sinks.clickhouse.server import Server as Http
from tasks.sinks.outcome import Blame


def fault_of(settings: Settings, seconds_max: float) -> Fault | None:
    """Returns the fault of the server; None if it responds. Errors caused by its schema or its load do not count
    as faults.
    """
    server = Http(settings)
    try:
        failure = failure_of_query(server.query("SELECT 1 FORMAT JSON", time.monotonic() + seconds_max))
    finally:
        server.close()
    address = without_secrets(settings.clickhouse_url)
    if failure is None:
        return None
    if failure.message.endswith(REFUSED_LOGIN):
        text = shortened(failure.message.removesuffix(f"; {REFUSED_LOGIN}"))
        return fault(Server.CLICKHOUSE, Cause.LOGIN, f"{address} refuses the login: {text}")
    if failure.blame is Blame.NETWORK:
        return fault(
            Server.CLICKHOUSE, Cause.UNREACHABLE, f"{address} does not respond: {shortened(failure.message)}"
        )
    if failure.blame in (Blame.REQUEST, Blame.CREDENTIALS):
        what_to_do = WHAT_TO_DO[Server.CLICKHOUSE, Cause.RIGHTS]
        return Fault(Server.CLICKHOUSE, f"{address} refuses queries: {shortened(failure.message)}", what_to_do)
    return None
