"""A short chaos run with real processes and seeded faults, after which every sink is reconciled."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from tests.kit.prestarted import PARENTS

RUN_SECONDS_MAX = 240
MINUTES = "0.35"


@pytest.mark.chaos
@pytest.mark.timeout(RUN_SECONDS_MAX + 10)
def test_nothing_is_lost_or_duplicated_under_random_faults():
    """While readers, workers, Redis, the broker, Flower and sinks fail at random, nothing is lost or
    duplicated.
    """
    seed = os.environ.get("REPLAYS_TEST_CHAOS_SEED", "5")

    command, sockets = PARENTS.share_with("tools.chaos", "--minutes", MINUTES, "--seed", seed, "--json")
    completed = subprocess.run(
        command,
        pass_fds=sockets,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS_MAX,
        check=False,
    )

    assert completed.stdout.startswith("{"), completed.stdout + completed.stderr
    result = json.loads(completed.stdout)
    assert completed.returncode == 0, result["error"]
    assert (result["lost"], result["doubled"], result["violations"]) == (0, 0, [])
    assert len(result["faults"]) >= 4
    assert result["reconciliation"]["ok"]
    assert all(code == 0 for code in result["exit_codes"].values())
