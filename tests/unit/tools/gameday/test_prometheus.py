"""The rules of a game day are the deployed rules with shorter durations."""

from __future__ import annotations

from pathlib import Path

import yaml

from tools.gameday.faults import FAULTS
from tools.gameday.page import faults, panels
from tools.gameday.prometheus import ALERTS, WAITING_RULES, is_in_runbook, scaled_rules


def deployed_rules() -> dict[str, dict[str, str]]:
    document = yaml.safe_load(Path(ALERTS).read_text())
    return {rule["alert"]: rule for group in document["groups"] for rule in group["rules"]}


def scaled(factor: float) -> dict[str, dict[str, str]]:
    document = scaled_rules(yaml.safe_load(Path(ALERTS).read_text()), factor)
    return {rule["alert"]: rule for group in document["groups"] for rule in group["rules"]}


def test_a_factor_of_one_changes_no_duration():
    """A factor of one leaves every duration unchanged."""
    before, after = deployed_rules()["ReplaysRejects"], scaled(1)["ReplaysRejects"]

    assert before["for"] == "10m"
    assert after["for"] == "600s"
    assert "[600s]" in after["expr"]


def test_for_clauses_ranges_and_thresholds_are_divided():
    """Every duration in a rule is divided by the factor, and no other number is."""
    rules = scaled(20)

    assert rules["ReplaysBatchParked"]["expr"].strip() == "replays_reader_parked_oldest_seconds > 45"
    assert rules["ReplaysReaderDown"]["for"] == "6s"
    assert rules["ReplaysItemsRefused"]["expr"].strip().endswith("[45s])) > 0")
    assert rules["ReplaysRedisFull"]["expr"].strip().endswith("> 0.7")
    assert rules["ReplaysRetentionNear"]["expr"].strip().endswith("> 2160")
    assert rules.keys() == deployed_rules().keys() >= WAITING_RULES


def test_every_fault_has_an_alert_that_exists_and_a_section_of_the_runbook():
    """For every fault, the expected alert exists and has a section in the runbook, so that a renamed rule is
    noticed.
    """
    for fault in FAULTS:
        assert fault.alert in deployed_rules()
        assert is_in_runbook(f"docs/runbook.md#{fault.alert.lower()}")
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 10


def test_the_page_has_a_row_per_fault_and_lists_unfixed_ones():
    """The tables in docs/gameday.md come from the recorded run, and include faults that were not fixed."""
    fault = {
        "fault": "Redis killed",
        "alert": "ReplaysRedisDown",
        "others": ["ReplaysLag"],
        "steps": ["Redis is started again", "replays-ingest check"],
        "seen": ["min(up) == 1 | x: it is 1"],
        "fired_seconds": 4.56,
        "resolved_seconds": 2.0,
        "drained_seconds": None,
        "segments": 1200,
        "late_segments": 36,
        "trouble": "not committed within 120 s\nand more",
    }

    row = list(faults([fault]))[2]

    assert "[ReplaysRedisDown](runbook.md#replaysredisdown); also ReplaysLag" in row
    assert "| 4.6 | Redis is started again; `replays-ingest check` |" in row
    assert (
        "min(up) == 1 \\| x: it is 1; **not fixed:** not committed within 120 s | 2.0 | never | 36 of 1,200 |"
        in row
    )


def test_the_page_names_the_panels_expressions_without_data():
    """Panels that had no data at any time during the run are listed."""
    queried = [
        {"panel": "Lag", "expression": "max(lag)", "series": 4, "values": 1200},
        {"panel": "Lag", "expression": "sum(lag)", "series": 0, "values": 0},
    ]

    assert list(panels(queried))[2] == "| Lag | 2 | 1 | 4 | 1,200 |"
