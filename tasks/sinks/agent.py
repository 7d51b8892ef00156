"""Tests whether a DogStatsD agent is listening at the configured address, without sending a metric.

Over a Unix socket, the kernel reports a missing agent. Over UDP, the host may report a closed port; otherwise
nothing confirms delivery.
"""

from __future__ import annotations

import socket
from ipaddress import ip_address

from tasks.errors import PermanentSinkError, TransientSinkError
from tasks.loading import in_pod
from tasks.settings import Settings
from tasks.sinks.base import Report

# Maximum wait for the host's report of a closed port, which the host sends immediately or never.
REFUSAL_SECONDS = 0.2
NOT_CONFIRMED = "delivery: DogStatsD confirms no packet"
# The forms of a socket address that the client accepts and Datadog documents, each with its possible socket types.
SOCKETS = {
    "unixgram://": (socket.SOCK_DGRAM,),
    "unixstream://": (socket.SOCK_STREAM,),
    "unix://": (socket.SOCK_DGRAM, socket.SOCK_STREAM),
    "": (socket.SOCK_DGRAM, socket.SOCK_STREAM),
}


def report(settings: Settings) -> Report:
    """Connects to the Unix socket, or sends an empty datagram and waits for a refusal.

    Raises TransientSinkError if nothing listens on the socket, and PermanentSinkError if the host name does not
    resolve.
    """
    if settings.datadog_socket:
        _connect(settings.datadog_socket)
        return Report(f"agent listens on {settings.datadog_socket}", not_tested=(NOT_CONFIRMED,))
    host, place = settings.datadog_host, f"{settings.datadog_host}:{settings.datadog_port}"
    try:
        refused = _refuses_connections(host, settings.datadog_port)
    except OSError as error:
        raise PermanentSinkError(f"{host}: {error}", configuration=True) from error
    if not refused:
        return Report(f"sends to {place} over UDP, which is not refused", not_tested=(NOT_CONFIRMED,))
    lost = f"nothing listens on {place}: metrics are lost; check that the agent is running, and the address"
    if in_pod() and _is_loopback(host):
        lost = (
            f"nothing listens on {place}, which is this pod itself: metrics are lost; set REPLAYS_DATADOG_HOST to "
            "the node's address (status.hostIP), or mount the agent's socket and set REPLAYS_DATADOG_SOCKET"
        )
    return Report(f"sends to {place} over UDP", (lost,), (NOT_CONFIRMED,))


def _connect(place: str) -> None:
    """Connects to the socket, trying each socket type that its address allows. Raises TransientSinkError if every
    attempt fails.
    """
    prefix = next(prefix for prefix in SOCKETS if place.startswith(prefix))
    path, failure = place.removeprefix(prefix), OSError()
    for kind in SOCKETS[prefix]:
        with socket.socket(socket.AF_UNIX, kind) as probe:
            try:
                return probe.connect(path)
            except OSError as error:
                failure = error
    raise TransientSinkError(
        f"{place}: {failure}; check that the agent is running and the socket is mounted"
    ) from failure


def _refuses_connections(host: str, port: int) -> bool:
    """Returns True if the host reports a closed port. Raises OSError for a name that does not resolve."""
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(address)
        probe.settimeout(REFUSAL_SECONDS)
        try:
            probe.send(b"")
            probe.recv(1)
        except TimeoutError:
            return False
        except ConnectionRefusedError:
            return True
    return False


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
