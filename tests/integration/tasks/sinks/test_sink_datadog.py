"""Metrics sent over real datagram sockets."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from ingest.local.servers.processes import wait_until
from ingest.local.servers.statsd import Statsd
from tasks.errors import PermanentSinkError, TransientSinkError
from tasks.settings import Settings
from tasks.sinks import Level, check
from tasks.sinks.datadog import DatadogSink
from tasks.wire import Metric, MetricKind

COMPRESSED = "replays.usecases.ingest.size_compressed"


def test_distributions_and_counters_arrive(settings: Callable[..., Settings], statsd: Statsd) -> None:
    """Distributions and counters arrive with unchanged names, kinds, values and tags."""
    host, _, port = statsd.address.rpartition(":")
    sink = DatadogSink(settings(datadog_host=host, datadog_port=int(port)))
    items = [Metric(MetricKind.DISTRIBUTION, COMPRESSED, 1000.0 + n, ("sdk:web",)) for n in range(200)]
    items += [
        Metric(MetricKind.COUNTER, "replay.rage_click_detected", 2, ()),
        Metric(MetricKind.DISTRIBUTION, "share", 0.25, ()),
    ]

    sink.write(items, "token", 5)
    wait_until(lambda: statsd.count(COMPRESSED) == 200, 5, "200 samples")

    assert statsd.sum(COMPRESSED) == sum(1000 + n for n in range(200))
    assert statsd.sum("replay.rage_click_detected") == 2
    lines = statsd.packets()
    assert f"{COMPRESSED}:1000|d|#sdk:web" in lines
    assert "share:0.25|d" in lines
    sink.close()
    sink.close()


def test_a_repeated_write_is_counted_again(settings: Callable[..., Settings], statsd: Statsd) -> None:
    """A repeated write is counted again, because DogStatsD cannot identify repeated packets; this is a known
    limit.

    Normally the done mark of the flush task prevents a repeated write.
    """
    host, _, port = statsd.address.rpartition(":")
    sink = DatadogSink(settings(datadog_host=host, datadog_port=int(port)))
    items = [Metric(MetricKind.COUNTER, "twice", 1, ())]

    sink.write(items, "token", 5)
    sink.write(items, "token", 5)

    wait_until(lambda: statsd.sum("twice") == 2, 5, "both")
    sink.close()


def test_packets_fit_an_ethernet_frame(settings: Callable[..., Settings]) -> None:
    """Each datagram has at most 1432 bytes, so that it fits into an Ethernet frame, and contains many lines."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.settimeout(5)
        sink = DatadogSink(settings(datadog_host="127.0.0.1", datadog_port=listener.getsockname()[1]))
        items = [
            Metric(MetricKind.DISTRIBUTION, COMPRESSED, 123456.789 * n, ("sdk:web", f"project:{n}"))
            for n in range(100)
        ]
        sink.write(items, "token", 5)
        packets: list[bytes] = []
        while sum(packet.count(b"|d") for packet in packets) < 100:
            packets.append(listener.recv(65535))
        sink.close()

    assert max(len(packet) for packet in packets) <= 1432
    assert len(packets) < 15


def test_a_missing_agent_over_udp_is_not_detected(settings: Callable[..., Settings]) -> None:
    """A missing agent is not detected over UDP, which gives no confirmation: a known limitation.

    The kernel reports an error only sometimes.
    """
    sink = DatadogSink(settings(datadog_host="127.0.0.1", datadog_port=9))

    for _ in range(5):
        sink.write([Metric(MetricKind.COUNTER, "x", 1, ())], "token", 5)

    assert "UDP" in sink.check().text
    sink.close()


def test_a_missing_agent_behind_a_unix_socket_is_transient(
    settings: Callable[..., Settings], tmp_path: Path
) -> None:
    """Over a Unix socket, the kernel reports a missing agent.

    Nothing was sent, so every metric is reported as failed. Once an agent is running, the write succeeds.
    """
    path = str(tmp_path / "dsd.sock")
    sink = DatadogSink(settings(datadog_socket=path))
    items = [Metric(MetricKind.COUNTER, "x", 1, ()), Metric(MetricKind.COUNTER, "y", 1, ())]

    with pytest.raises(TransientSinkError) as failed:
        sink.write(items, "token", 5)
    with pytest.raises(TransientSinkError, match="agent"):
        sink.check()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(path)
        listener.settimeout(5)
        sink.write(items, "token", 5)
        packet = listener.recv(65535)
        assert path in sink.check().text

    assert failed.value.failed == (0, 1)
    assert packet.splitlines() == [b"x:1|c", b"y:1|c"]
    sink.close()


def test_a_host_that_does_not_exist_is_found_by_check(settings: Callable[..., Settings]) -> None:
    sink = DatadogSink(settings(datadog_host="no-such-host.invalid"))

    with pytest.raises(PermanentSinkError) as refused:
        sink.check()

    assert refused.value.configuration


def test_check_warns_when_nothing_listens(settings: Callable[..., Settings], statsd: Statsd) -> None:
    """`check` warns if the host reports a closed port.

    Nothing else can be detected over UDP, and the warning says so.
    """
    host, _, port = statsd.address.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        closed = free.getsockname()[1]

    listens = check("datadog", settings(datadog_host=host, datadog_port=int(port)))
    silent = check("datadog", settings(datadog_host="127.0.0.1", datadog_port=closed))

    assert (listens.level, listens.warnings) == (Level.OK, ())
    assert silent.level is Level.WARNING
    assert f"nothing listens on 127.0.0.1:{closed}" in silent.warnings[0]
    assert listens.not_tested == silent.not_tested == ("delivery: DogStatsD confirms no packet",)
    assert statsd.metrics() == []


@pytest.mark.parametrize("form", ["{}", "unix://{}", "unixgram://{}", "unixstream://{}"])
def test_check_connects_to_the_socket_that_the_client_writes_to(
    form: str, settings: Callable[..., Settings], tmp_path: Path
) -> None:
    """`check` connects to the socket that the client writes to, whether it is a datagram or a stream socket.

    The address is a path, or has one of the formats described in Datadog's documentation.
    """
    path = str(tmp_path / "dsd.sock")
    kind = socket.SOCK_STREAM if "stream" in form else socket.SOCK_DGRAM
    place = form.format(path)
    sink = DatadogSink(settings(datadog_socket=place))
    with socket.socket(socket.AF_UNIX, kind) as listener:
        listener.bind(path)
        if kind is socket.SOCK_STREAM:
            listener.listen()
        assert sink.check().text == f"agent listens on {place}"
        sink.write([Metric(MetricKind.COUNTER, "x", 1, ())], "token", 5)
    sink.close()

    with pytest.raises(TransientSinkError, match="agent"):
        sink.check()


def test_in_a_pod_the_warning_explains_the_loopback_address(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a pod uses the default host, where no sidecar listens, the warning names the address to use instead."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        closed = free.getsockname()[1]

    (warning,) = check("datadog", settings(datadog_host="127.0.0.1", datadog_port=closed)).warnings

    assert "this pod itself" in warning
    assert "status.hostIP" in warning
