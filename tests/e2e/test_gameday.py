"""A short game day: a real Prometheus evaluates the alerts for two faults, and the runbook's steps fix them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.kit.prestarted import PARENTS
from tools.gameday.prometheus import available

RUN_SECONDS_MAX = 400
FAULTS = {"one reader killed": "ReplaysReaderDown", "Redis killed": "ReplaysRedisDown"}


@pytest.mark.skipif(bool(available()), reason=available())
@pytest.mark.timeout(RUN_SECONDS_MAX + 10)
def test_two_faults_raise_their_alerts_and_are_fixed(tmp_path: Path):
    """For two faults, the deployed rules fire on real metrics, each alert resolves after the runbook's steps,
    and the dashboard has data.
    """
    record = tmp_path / "gameday.json"
    only = [argument for name in FAULTS for argument in ("--only", name)]
    modest = ["--kafka", "tansu", "--rate", "8", "--quiet-seconds", "2"]

    command, sockets = PARENTS.share_with("tools.gameday.run", *modest, "--json", str(record), *only)
    completed = subprocess.run(
        command,
        pass_fds=sockets,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS_MAX,
        check=False,
    )

    assert completed.returncode == 0, completed.stdout + completed.stderr
    result = json.loads(record.read_text())
    assert {each["fault"]: each["alert"] for each in result["played"]} == FAULTS
    for each in result["played"]:
        assert each["fired_seconds"] > 0
        assert each["resolved_seconds"] > 0
        assert each["seen"][-1].startswith("no alert is firing")
        assert each["section"].endswith(f"#{each['alert'].lower()}")
    assert [query["expression"] for query in result["panels"] if not query["values"]] == []
