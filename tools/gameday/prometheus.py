"""Runs a real Prometheus that scrapes the local processes and evaluates the deployed alert rules with shorter
durations.

`scaled_rules` divides every duration in a rule by the same factor: `for:`, the ranges and offsets in the
expression, and the threshold if it is a duration. The rest of a rule is unchanged, so a rule that can fire here
can also fire with the deployed durations, and vice versa.

The program `prometheus` must be installed separately; `available()` checks for it.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlencode

import yaml

from ingest.local.servers.base import HOST, Server, answers_http
from ingest.local.servers.processes import Children

REPOSITORY = Path(__file__).parents[2]
ALERTS = REPOSITORY / "deploy" / "prometheus" / "alerts.yml"
DASHBOARD = REPOSITORY / "deploy" / "grafana" / "dashboard.json"
RUNBOOK = REPOSITORY / "docs" / "runbook.md"

SECONDS_BY_UNIT = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
DURATION = re.compile(r"(\d+)([smhd])")
THRESHOLD = re.compile(r"> ([\d.]+(?: \* [\d.]+)?)\s*$")
# Rules whose threshold is the duration of an ongoing problem, in seconds.
WAITING_RULES = {
    "ReplaysLoopStuck",
    "ReplaysLag",
    "ReplaysRetentionNear",
    "ReplaysEndToEndSlow",
    "ReplaysBatchParked",
    "ReplaysWorkerLostRedis",
}
# A rate needs at least two scrapes. A worker sends a heartbeat every two seconds, or every five seconds on a busy
# machine.
RANGE_SECONDS_MIN = 5
THRESHOLD_SECONDS_MIN = 5


def available() -> str:
    """Returns an empty string if Prometheus can run here, otherwise the reason why it cannot."""
    return "" if shutil.which("prometheus") else "the program `prometheus` is not on the PATH"


def scaled_rules(rules: dict[str, Any], factor: float) -> dict[str, Any]:
    """Returns the content of a rule file with all of its times divided by `factor`."""

    def scaled_duration(found: re.Match[str]) -> str:
        seconds = int(found[1]) * SECONDS_BY_UNIT[found[2]] / factor
        return f"{max(1, round(seconds))}s"

    def in_range(found: re.Match[str]) -> str:
        seconds = int(found[1]) * SECONDS_BY_UNIT[found[2]] / factor
        return f"[{max(RANGE_SECONDS_MIN, round(seconds))}s]"

    def rule(before: dict[str, Any]) -> dict[str, Any]:
        expression = re.sub(r"\[(\d+)([smhd])\]", in_range, before["expr"])
        expression = re.sub(r"offset \d+[smhd]", lambda found: DURATION.sub(scaled_duration, found[0]), expression)
        if before["alert"] in WAITING_RULES:
            assert THRESHOLD.search(expression), before["alert"]
            expression = THRESHOLD.sub(_shorten_duration(factor), expression)
        after = {**before, "expr": expression}
        if "for" in before:
            after["for"] = DURATION.sub(scaled_duration, before["for"])
        return after

    groups = [{**group, "rules": [rule(each) for each in group["rules"]]} for group in rules["groups"]]
    return {**rules, "groups": groups}


def _shorten_duration(factor: float) -> Callable[[re.Match[str]], str]:
    def replaced(found: re.Match[str]) -> str:
        seconds = math.prod(float(number) for number in found[1].split(" * "))
        return f"> {max(THRESHOLD_SECONDS_MIN, seconds / factor):g}"

    return replaced


@dataclass(frozen=True, slots=True)
class Alert:
    """A firing or pending alert. `runbook_url` is the rule's annotation of that name."""

    name: str
    state: str
    summary: str
    runbook_url: str


class Prometheus(Server):
    """Scrapes `targets` (addresses by job) and evaluates the rules of `alerts`, both every second."""

    name: ClassVar[str] = "prometheus"
    start_seconds_max: ClassVar[float] = 60.0

    def __init__(
        self,
        children: Children,
        directory: Path,
        targets: Mapping[str, list[str]],
        *,
        factor: float,
        alerts: Path = ALERTS,
    ) -> None:
        super().__init__(children, directory)
        directory.mkdir(parents=True, exist_ok=True)
        self._configuration = directory / "prometheus.yml"
        rules = directory / "alerts.yml"
        rules.write_text(yaml.safe_dump(scaled_rules(yaml.safe_load(alerts.read_text()), factor), sort_keys=False))
        jobs = [
            {"job_name": job, "static_configs": [{"targets": list(addresses)}]}
            for job, addresses in targets.items()
        ]
        timing = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        labels = {"external_labels": {"runbooks": "docs/runbook.md"}}
        whole = {"global": {**timing, **labels}, "rule_files": [str(rules)], "scrape_configs": jobs}
        self._configuration.write_text(yaml.safe_dump(whole, sort_keys=False))

    def command(self) -> list[str]:
        """Returns the command line of Prometheus, which listens on the loopback interface and stores its data in
        `directory`.
        """
        return [
            "prometheus",
            f"--config.file={self._configuration}",
            f"--storage.tsdb.path={self.directory / 'data'}",
            f"--web.listen-address={HOST}:{self.port}",
            "--log.level=warn",
        ]

    def is_ready(self) -> bool:
        """Returns the result of Prometheus' readiness probe."""
        return answers_http(f"{self.address}/-/ready")

    @property
    def address(self) -> str:
        """http://host:port."""
        return f"http://{HOST}:{self.port}"

    # Queries. These methods raise OSError if Prometheus does not respond, and ValueError with the error message
    # from Prometheus if it refuses a query.

    def alerts(self) -> list[Alert]:
        """Returns the alerts that are pending or firing now."""
        return [
            Alert(
                found["labels"]["alertname"],
                found["state"],
                found["annotations"].get("summary", ""),
                found["annotations"].get("runbook_url", ""),
            )
            for found in self._ask("alerts")["alerts"]
        ]

    def firing(self) -> dict[str, Alert]:
        """Returns the alerts that are firing now, by name."""
        return {alert.name: alert for alert in self.alerts() if alert.state == "firing"}

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Returns the series of an instant query: {"metric": labels, "value": [time, text]}."""
        found: list[dict[str, Any]] = self._ask("query", query=expression)["result"]
        return found

    def history(self, expression: str, start: float, end: float, step_seconds: float = 1) -> list[dict[str, Any]]:
        """Returns the series of a range query: {"metric": labels, "values": [[unix seconds, text], ...]}."""
        # Prometheus returns at most 11,000 points per series.
        step_seconds = max(step_seconds, (end - start) / 10_000)
        asked = {"query": expression, "start": f"{start:.3f}", "end": f"{end:.3f}", "step": f"{step_seconds:.3f}"}
        found: list[dict[str, Any]] = self._ask("query_range", **asked)["result"]
        return found

    def durable(self, seconds: float) -> tuple[int, int]:
        """Returns (number of segments that became durable in the last `seconds`, number of those segments that
        missed the objective).
        """
        window = f"[{max(RANGE_SECONDS_MIN, round(seconds))}s]"
        counted = {"count": "", "bucket": '{le="30.0"}'}
        found = []
        for part, label in counted.items():
            series = self.query(f"sum(increase(replays_reader_end_to_end_seconds_{part}{label}{window}))")
            found.append(round(float(series[0]["value"][1])) if series else 0)
        every, on_time = found
        return every, max(0, every - on_time)

    def fired(self, start: float, end: float) -> set[str]:
        """Returns the names of the alerts that fired at any time during the period."""
        series = self.history('ALERTS{alertstate="firing"}', start, end)
        return {found["metric"]["alertname"] for found in series}

    def _ask(self, what: str, **arguments: str) -> Any:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"{self.address}/api/v1/{what}?{urlencode(arguments)}", timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            if error.code == 400:
                raise ValueError(json.load(error)["error"]) from error
            raise


@dataclass(frozen=True, slots=True)
class PanelQuery:
    """One expression of the dashboard, and the number of series and numeric values that it returned."""

    panel: str
    expression: str
    series: int
    values: int


def query_panels(server: Prometheus, start: float, end: float) -> list[PanelQuery]:
    """Evaluates every expression of every panel over the given period (Unix seconds)."""
    found = []
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            series = server.history(without_variables(target["expr"]), start, end, 5)
            numbers = [value for each in series for _, value in each["values"] if value != "NaN"]
            found.append(PanelQuery(panel["title"], target["expr"], len(series), len(numbers)))
    return found


def without_variables(expression: str) -> str:
    """Returns the expression that Grafana sends if "All" is selected for each variable."""
    return re.sub(r"\$(?:namespace|topic|instance)\b", ".*", expression)


def is_in_runbook(url: str) -> bool:
    """Returns True if the runbook has the section to which an alert links."""
    _, _, anchor = url.partition("#")
    headings = (line[4:] for line in RUNBOOK.read_text().splitlines() if line.startswith("### "))
    return anchor in {heading.strip().lower() for heading in headings}
