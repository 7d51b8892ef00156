"""The demo with a small load, started as a user would start it: every input arrives, even if components are
killed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import pytest

from ingest.local.servers.processes import group_is_alive, wait_until
from tests.kit.prestarted import PARENTS

RUN_SECONDS_MAX = 170
# Even a small load produces several batches per partition, so that a kill hits some of them in flight.
SMALL_BATCHES = {"REPLAYS_BATCH_MESSAGES_MAX": "20"}


def start(
    command: list[str], directory: Path, sockets: tuple[int, ...] = (), settings: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*command, "--profile", "small", "--directory", str(directory)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **SMALL_BATCHES, **(settings or {})},
        pass_fds=sockets,
    )


def demo(
    *arguments: str, directory: Path, settings: Mapping[str, str] | None = None
) -> tuple[int, dict[str, Any]]:
    """Runs the demo, and returns its exit code and the JSON that it printed."""
    command, sockets = PARENTS.share_with("ingest.local.demo", *arguments, "--json")
    process = start(command, directory, sockets, settings)
    output, _ = process.communicate(timeout=RUN_SECONDS_MAX)
    began = output.find("{")  # the Kafka client may have printed a line before the JSON
    assert began >= 0, output
    return process.returncode, json.JSONDecoder().raw_decode(output[began:])[0]


def explain(outcome: dict[str, Any]) -> str:
    """Describes the failed checks in the message of a failing test."""
    checks = (outcome["reconciliation"] or {}).get("checks", ())
    return "\n".join([outcome["error"], *(str(check) for check in checks if not check["ok"])])


@pytest.mark.timeout(RUN_SECONDS_MAX + 10)
def test_every_input_arrives_exactly_once(tmp_path: Path):
    """The demo's reconciliation of objects, rows, facts, metrics, dead letters and offsets passes, and the
    reader exits with 0.
    """
    code, outcome = demo("300", directory=tmp_path)

    assert code == 0, explain(outcome)
    assert outcome["ok"]
    assert outcome["reader_exit"] == 0
    names = {check["name"] for check in outcome["reconciliation"]["checks"]}
    assert {"GCS objects", "ClickHouse clicks", "BigQuery facts", "dead letters", "committed offsets"} <= names


@pytest.mark.timeout(RUN_SECONDS_MAX + 10)
def test_packed_objects_hold_every_recording(tmp_path: Path):
    """The packed layout stores fewer objects, and each recording is found, byte for byte, at the location given in
    the index.
    """
    code, outcome = demo("300", "--layout", "packed", directory=tmp_path)

    assert code == 0, explain(outcome)
    assert list(tmp_path.rglob("*packed*"))


@pytest.mark.timeout(RUN_SECONDS_MAX + 10)
def test_facts_that_the_reader_encodes_as_protobuf_arrive_exactly_once(tmp_path: Path):
    """With the Storage Write API, the demo succeeds, and every stored fact was appended to a write stream."""
    code, outcome = demo("300", directory=tmp_path, settings={"REPLAYS_BIGQUERY_WRITE": "storage"})

    assert code == 0, explain(outcome)
    (facts,) = (check for check in outcome["reconciliation"]["checks"] if check["name"] == "BigQuery facts")
    with duckdb.connect(str(tmp_path / "bigquery" / "bigquery.duckdb"), read_only=True) as database:
        ((appended,),) = database.execute("SELECT sum(row_count) FROM meta.streams").fetchall()
    assert appended >= facts["found"] > 0
    staged = (tmp_path / "redis").rglob("*.aof")
    assert b"\xa7columns" in b"".join(file.read_bytes() for file in staged)


@pytest.mark.parametrize("victim", ["worker", "reader", "redis"])
@pytest.mark.timeout(RUN_SECONDS_MAX + 10)
def test_nothing_is_lost_when_a_component_is_killed_mid_run(tmp_path: Path, victim: str):
    """After a SIGKILL and a restart of each component, the reconciliation still passes. Redis restarts empty."""
    code, outcome = demo("600", "--kill", victim, directory=tmp_path)

    assert outcome["killed"] == victim
    assert code == 0, explain(outcome)


@pytest.mark.timeout(RUN_SECONDS_MAX + 10)
def test_a_killed_demo_leaves_no_process_behind(tmp_path: Path):
    """If the demo itself is killed with kill -9, its watchdog stops every child."""
    process = start([sys.executable, "-m", "ingest.local.demo", "2000"], tmp_path)
    assert process.stdout is not None
    line = next(line for line in process.stdout if line.startswith("Flower "))
    children = pids_below(process.pid)

    process.send_signal(signal.SIGKILL)
    process.stdout.close()
    process.wait(10)

    assert "password" in line
    assert len(children) >= 8
    wait_until(lambda: not any(group_is_alive(pid) for pid in children), 20, "the demo's children to end")


def pids_below(parent: int) -> set[int]:
    """Returns the direct children of a process, read from /proc."""
    listed = subprocess.run(["ps", "-axo", "pid=,ppid="], capture_output=True, text=True, check=True)
    pairs = [line.split() for line in listed.stdout.splitlines()]
    return {int(pid) for pid, ppid in pairs if int(ppid) == parent}
