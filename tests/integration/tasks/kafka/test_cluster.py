"""Tests how topics and groups are described while the brokers are unavailable."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ingest.local.servers import java_kafka
from ingest.local.servers.processes import Children
from tasks.kafka import cluster
from tasks.settings import Settings
from tests.kit.paths import ROOT

DESCRIBE_UNTIL_AVAILABLE = """
import sys
from tasks.kafka import cluster
from tasks.settings import Settings

cluster.CALL_SECONDS_MAX = 1.0
client = cluster.Cluster(Settings(kafka_brokers=sys.argv[1]))
last = ""
while True:
    try:
        client.group("readers", "any")
        answer = "described"
    except cluster.ClusterError:
        answer = "failed"
    if answer == "failed" or last != answer:
        print(answer, flush=True)
    last = answer
"""


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


def test_a_broker_that_returns_after_a_timeout_does_not_abort_the_process(tmp_path: Path):
    """Requests to a group's coordinator time out while the broker is down, and succeed after its restart.

    The client library would abort a process that kept a client whose request timed out.
    """
    reason = java_kafka.available()
    if reason and not os.environ.get("CI"):
        pytest.skip(reason)
    with Children(tmp_path / "logs") as children:
        broker = java_kafka.JavaKafka(children, tmp_path / "kafka")
        broker.start()
        command = [sys.executable, "-c", DESCRIBE_UNTIL_AVAILABLE, broker.address]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            lines = iter(process.stdout)
            assert "described\n" in lines
            broker.kill()
            assert [next(lines), next(lines)] == ["failed\n", "failed\n"]
            broker.start()
            described = "described\n" in lines
            process.terminate()

    assert (described, process.returncode) == (True, -signal.SIGTERM)
