"""Tests how a topic is described while the brokers are unavailable."""

from __future__ import annotations

import socket

import pytest

from tasks.kafka import cluster
from tasks.settings import Settings


def test_unavailable_brokers_raise_without_library_output(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    """If no broker is available, the call raises ClusterError, and the client library prints nothing to standard
    error."""
    monkeypatch.setattr(cluster, "CALL_SECONDS_MAX", 1.5)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        away = f"127.0.0.1:{free.getsockname()[1]}"

    with pytest.raises(cluster.ClusterError):
        cluster.Cluster(Settings(kafka_brokers=away)).topic("any")

    assert capfd.readouterr().err == ""
