"""Tests only that the benchmark programs run; their results belong in docs/performance.md."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.paths import ROOT

MISSING = [
    name for name in ("msgpack", "fastjsonschema", "orjson", "psutil") if not importlib.util.find_spec(name)
]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"the extra bench is not installed: {MISSING}")


def run(module: str, *arguments: str, deadline_seconds: float = 120) -> str:
    """Returns the output of the program; if the program fails, the test fails with its error output."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    completed = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=deadline_seconds, check=False
    )
    assert completed.returncode == 0, completed.stderr[-3000:]
    return completed.stdout


@pytest.mark.parametrize(
    "module",
    [
        "latency_server",
        "peers_pipeline",
        "peers_celery",
        "end_to_end",
        "dispatch",
        "soak",
        "idle",
        "uploads",
        "rebalance",
        "slow_sinks",
        "scale_out",
    ],
)
def test_each_program_has_help(module: str) -> None:
    """Each benchmark program prints its options with `--help`."""
    assert "usage:" in run(module, "--help")


def test_fifty_segments_are_measured_from_kafka_to_the_bucket(tmp_path: Path) -> None:
    """With a slow store, all fifty segments are stored and counted, by our system and by two peers."""
    figures = tmp_path / "figures.json"

    run("end_to_end", "--segments", "50", "--workload", "50", "--processes", "1", "--latency-ms", "1",
        "--peers", "p1-typed,p5", "--json", str(figures))  # fmt: skip

    found = json.loads(figures.read_text())
    assert [result["requests"]["gcs"] >= 50 for result in found["results"]] == [True] * 4
    assert set(found["ratios"]) == {result["label"] for result in found["results"]}
    assert set(found["results"][-1]["cpu_seconds"]) == {"peer", "worker", "redis"}
