"""Descriptions of server faults for commands, pages and logs: the server, the problem, and what to do.

The clients' modules classify their errors (`tasks.connection`, `tasks.kafka.faults`, `tasks.sinks.clickhouse`).
Only this module has the advice for each kind of fault.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import msgspec


class Server(StrEnum):
    """A server whose faults this module describes."""

    REDIS = "redis"
    KAFKA = "kafka"
    CLICKHOUSE = "clickhouse"


class Cause(StrEnum):
    """The kind of problem with a server or with the connection to it."""

    UNREACHABLE = "unreachable"
    """The server refuses connections, does not respond, or its name does not resolve."""
    SILENT = "silent"
    """The server closes connections without a response, or does not respond."""
    LOGIN = "login"
    """The server responds and refuses the user or the password."""
    MECHANISM = "mechanism"
    """The server does not offer this kind of login."""
    ENCRYPTION = "encryption"
    """A certificate is not trusted, or one side speaks TLS and the other does not."""
    CLIENT = "client"
    """The client library does not accept the settings."""
    RIGHTS = "rights"
    """The login is accepted, but the operation is not permitted."""


WHAT_TO_DO: Mapping[tuple[Server, Cause], str] = {
    (Server.REDIS, Cause.UNREACHABLE): "start Redis, or correct REPLAYS_REDIS_URL",
    (Server.REDIS, Cause.LOGIN): "correct the user or password in REPLAYS_REDIS_URL",
    (Server.REDIS, Cause.RIGHTS): "grant its user the rights of deploy/redis/users.acl",
    (Server.KAFKA, Cause.UNREACHABLE): "start a broker, or correct REPLAYS_KAFKA_BROKERS",
    (Server.KAFKA, Cause.SILENT): (
        "start a broker, or correct REPLAYS_KAFKA_BROKERS or REPLAYS_KAFKA_SECURITY_PROTOCOL"
    ),
    (Server.KAFKA, Cause.LOGIN): "correct REPLAYS_KAFKA_SASL_USERNAME or REPLAYS_KAFKA_SASL_PASSWORD",
    (Server.KAFKA, Cause.MECHANISM): "correct REPLAYS_KAFKA_SASL_MECHANISM or REPLAYS_KAFKA_SECURITY_PROTOCOL",
    (Server.KAFKA, Cause.ENCRYPTION): "correct REPLAYS_KAFKA_SECURITY_PROTOCOL or REPLAYS_KAFKA_SSL_CA_FILE",
    (Server.KAFKA, Cause.CLIENT): "correct the REPLAYS_KAFKA_* settings",
    (Server.KAFKA, Cause.RIGHTS): "grant the rights that docs/hardening.md lists",
    (Server.CLICKHOUSE, Cause.UNREACHABLE): "start ClickHouse, or correct REPLAYS_CLICKHOUSE_URL",
    (Server.CLICKHOUSE, Cause.RIGHTS): "correct the REPLAYS_CLICKHOUSE_* settings, or the rights of its user",
    (Server.CLICKHOUSE, Cause.LOGIN): "correct REPLAYS_CLICKHOUSE_USER or REPLAYS_CLICKHOUSE_PASSWORD",
}
START_WORKER_ADVICE = "start `celery -A tasks worker`"
START_READER_ADVICE = "start `replays-ingest`"
# In a terminal without the variables of a local stack, workers and readers do not find its servers.
START_LOCAL_PROGRAMS_ADVICE = "start `replays-ingest local up --all`"


class Fault(msgspec.Struct, frozen=True):
    """A server that cannot be used: the problem, and what to do about it, in one line each, without secrets."""

    server: Server
    problem: str
    what_to_do: str

    @property
    def line(self) -> str:
        """The fault in one line."""
        return f"{self.server}: {self.problem}; {self.what_to_do}"


def start_worker_advice(*, local: bool) -> str:
    """Returns the advice shown if no worker is running. `local`: the settings come from a running local stack."""
    return START_LOCAL_PROGRAMS_ADVICE if local else START_WORKER_ADVICE


def start_reader_advice(*, local: bool) -> str:
    """Returns the advice shown if no reader is running. `local`: see `start_worker_advice`."""
    return START_LOCAL_PROGRAMS_ADVICE if local else START_READER_ADVICE


def fault(server: Server, cause: Cause, problem: str) -> Fault:
    """Creates a fault with the advice for this server and cause."""
    return Fault(server, problem, WHAT_TO_DO[server, cause])
