"""Every alert uses metrics that exist, links to a page that exists, and fires when it should."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from ingest.observe.metric_table import DEFINITIONS as READER
from tasks.observe.meters import Kind
from tasks.observe.metric_table import DEFINITIONS as WORKER
from tests.kit.paths import ROOT

ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
TESTS = [ROOT / "deploy" / "prometheus" / name for name in ("alerts_test.yml", "objective_test.yml")]
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboard.json"
METRIC = re.compile(r"\breplays_[a-z_]+\b")
METRIC_NAMES = {name for definition in (*READER, *WORKER) for name in definition.prometheus_names}
LABELS = {
    name: {*definition.labels, *(["le"] if definition.kind is Kind.HISTOGRAM else [])}
    for definition in (*READER, *WORKER)
    for name in definition.prometheus_names
}
TARGET_LABELS = {"job", "instance", "namespace", "topic"}

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    dashboard = json.loads(DASHBOARD.read_text())
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def expressions() -> list[tuple[str, str]]:
    """Returns (location, expression) for everything that queries Prometheus."""
    found = [(rule["alert"], rule["expr"]) for rule in rules()]
    return found + [(panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]]


@pytest.mark.parametrize(("where", "expression"), expressions())
def test_queried_metrics_exist(where: str, expression: str):
    """Every metric in an alert's query exists; an alert on a renamed metric could never fire."""
    for name in METRIC.findall(expression):
        assert name in METRIC_NAMES, f"{where} queries {name}"


@pytest.mark.parametrize(("where", "expression"), expressions())
def test_selected_labels_exist(where: str, expression: str):
    """Every label in selectors and groupings exists on its metric."""
    known = TARGET_LABELS.union(*(LABELS[name] for name in METRIC.findall(expression)))
    selected = set(re.findall(r"[{,]\s*([a-z_]+)\s*(?:=~|!=|!~|=)", expression))
    grouped = {label.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(",")}

    assert (selected | grouped) - known == set(), where


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_says_what_to_do(rule: dict[str, Any]):
    """Each alert has a severity, a summary, and a runbook section of the same name with steps."""
    runbook = (ROOT / "docs" / "runbook.md").read_text()
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"]["summary"].endswith((".", "?", ";", "staged.", "lost."))
    assert rule["annotations"]["runbook_url"].endswith(f"#{rule['alert'].lower()}")
    section = re.search(rf"^### {rule['alert']}\n(.*?)(?=^##)", runbook, re.MULTILINE | re.DOTALL)
    assert section, f"no section {rule['alert']}"
    for part in ("*Symptom:*", "*Meaning:*", "\n1. "):
        assert part in section[1]


def test_the_runbook_names_only_what_exists():
    """All commands, settings, metrics and links in the runbook exist."""
    from ingest.cli.main import main as command_line
    from ingest.settings import Settings

    text = (ROOT / "docs" / "runbook.md").read_text()
    for command in set(re.findall(r"replays-ingest ([a-z]+)", text)):
        assert command in command_line.commands, command
    settings = {name.upper() for name in Settings.model_fields}
    for setting in set(re.findall(r"REPLAYS_([A-Z_]+)`?", text)):
        assert setting.rstrip("_") in settings, setting
    anchors = {line[4:].strip().lower() for line in text.splitlines() if line.startswith("### ")}
    for link in re.findall(r"\]\(#([a-z0-9-]+)\)", text):
        assert link in anchors, link
    for panel in re.findall(r'[Pp]anels? ("[^."]+"(?:(?:,| and) "[^."]+")*)', text):
        assert set(re.findall(r'"([^"]+)"', panel)) <= {each["title"] for each in panels()}, panel
    for fault in range(1, 13):
        assert f"### Fault {fault}: " in text


def test_every_alert_has_a_test_that_fires_it():
    """Every alert has a test in alerts_test.yml that makes it fire. This check needs no promtool."""
    provoked = {
        expected["alertname"]
        for path in TESTS
        for test in yaml.safe_load(path.read_text())["tests"]
        for expected in test.get("alert_rule_test", [])
        if expected["exp_alerts"]
    }

    assert provoked == {rule["alert"] for rule in rules()}


@needs_promtool
def test_every_alert_fires_when_it_should_and_none_in_a_healthy_system():
    """With the series in the test files, every alert fires when it should, and no alert fires in a healthy
    system.
    """
    for arguments in (["check", "rules", ALERTS], ["test", "rules", *TESTS]):
        result = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, result.stdout + result.stderr


@needs_promtool
def test_prometheus_accepts_its_configuration():
    """promtool accepts the configuration of the Compose setup and its rules."""
    path = ROOT / "deploy" / "prometheus" / "prometheus.yml"
    result = subprocess.run(["promtool", "check", "config", str(path)], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_dashboard_shows_every_metric_of_an_alert():
    """The dashboard shows every metric that an alert uses, because an operator follows the alert to the
    dashboard.
    """
    shown = {name for panel in panels() for target in panel["targets"] for name in METRIC.findall(target["expr"])}
    alerted = {name for rule in rules() for name in METRIC.findall(rule["expr"])}
    not_drawn = {
        "replays_reader_loop_turned_seconds",  # a graph would add nothing, because a stuck reader is still scraped
        "replays_reader_partitions_assigned",
        "replays_reader_queue_consumers",  # `status` names the workers and their queues
        "replays_reader_offsets_out_of_range_total",
        "replays_reader_messages_expired_total",
        "replays_reader_redis_up",
        "replays_worker_completions_total",
        "replays_worker_heartbeat_seconds",
        # These metrics are zero unless an entry is forged, in which case the log names the process.
        "replays_reader_unverified_total",
        "replays_worker_unverified_total",
    }

    assert alerted - shown - not_drawn == set()


def test_every_expression_of_the_dashboard_uses_its_variables():
    """Every expression of the dashboard uses the variables for data source, namespace, topic and instance."""
    variables = [each["name"] for each in json.loads(DASHBOARD.read_text())["templating"]["list"]]
    scope = 'namespace=~"$namespace", topic=~"$topic", instance=~"$instance"'

    assert variables == ["datasource", "namespace", "topic", "instance"]
    for panel in panels():
        assert panel["datasource"]["uid"] == "${datasource}", panel["title"]
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}", panel["title"]
            for selector in re.findall(r"\breplays_[a-z_]+(.{0,200})", target["expr"]):
                assert selector.startswith("{" + scope), panel["title"]


def test_the_variables_match_scraped_targets():
    """The dashboard's variables, whose values come from labels of `up`, match the scraped targets.

    "All" still matches if such a label is missing.
    """
    for variable in json.loads(DASHBOARD.read_text())["templating"]["list"][1:]:
        assert re.fullmatch(rf"label_values\(up\{{.*\}}, {variable['name']}\)", variable["definition"])
        assert variable["allValue"] == ".*"


def test_panels_do_not_overlap_and_have_descriptions():
    cells: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        mine = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not mine & cells, panel["title"]
        assert place["x"] + place["w"] <= 24
        cells |= mine
        assert panel["type"] == "row" or panel["description"]
