"""Compares facts in BigQuery, and rage clicks on the timeline, with the actions performed on the page."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from playwright.sync_api import Page

from ingest.settings import Settings
from tasks.sinks.bigquery.sink import client
from tasks.sinks.clickhouse.sink import client as clickhouse
from tools.sdks.driving import PerformedActions, path_of

Facts = list[tuple[str, dict[str, Any]]]
ONCE_PER_SECOND = "the SDK sends repeated clicks on one element once per second"
NOTHING = "none"


@dataclass(frozen=True, slots=True)
class Comparison:
    """The comparison of one kind of fact. `reason`: why a difference is correct, or "" if no reason is known."""

    kind: str
    did: str
    stored: str
    reason: str = ""

    @property
    def is_equal(self) -> bool:
        return self.did == self.stored

    @property
    def is_accepted(self) -> bool:
        """True if the values are equal, or if they differ for a stated reason."""
        return self.is_equal or bool(self.reason)


def facts_of(settings: Settings, replay_id: str) -> Facts:
    """Returns the type and attributes of each fact in BigQuery."""
    connected = client(settings)
    try:
        rows = connected.query_and_wait(
            f"SELECT DISTINCT row_id, event_type, TO_JSON_STRING(attributes) AS attributes "
            f"FROM `{settings.bigquery_project}.{settings.bigquery_dataset}.replay_events` "
            f"WHERE replay_id = '{replay_id}'"
        )
        return [(row["event_type"], json.loads(row["attributes"])) for row in rows]
    finally:
        connected.close()  # type: ignore[no-untyped-call]


def sdk_version_of(settings: Settings, replay_id: str) -> str:
    """Returns the version of the only SDK that sent this replay."""
    connected = clickhouse(settings)
    try:
        ((version,),) = connected.query(
            "SELECT DISTINCT sdk_version FROM replays WHERE replay_id = {replay:UUID} AND sdk_name != ''",
            parameters={"replay": replay_id},
        ).result_rows
        return str(version)
    finally:
        connected.close()


def compared(facts: Facts, done: PerformedActions) -> list[Comparison]:
    """Returns one comparison per kind of fact."""
    clicked = Counter(_element(data) for kind, data in facts if kind == "ui.click")
    single = {name: count for name, count in done.clicks.items() if name not in done.bursts}
    rage = Counter(_element(data) for kind, data in facts if kind == "ui.rageClick")
    dead = Counter(_element(data) for kind, data in facts if kind == "ui.deadClick")
    requests = Counter(
        (data["method"], path_of(data["url"]), int(data["status_code"]))
        for kind, data in facts
        if kind in ("resource.fetch", "resource.xhr") and "/shop/" in data["url"]
    )
    console = [f"{data['level']}: {data['message']}" for kind, data in facts if kind == "console"]
    inputs = {_input(data) for kind, data in facts if kind == "ui.input"}
    navigation = [path_of(data["to"]) for kind, data in facts if kind == "navigation"]
    return [
        Comparison("clicks", _counts(single), _counts({k: n for k, n in clicked.items() if k not in done.bursts})),
        _repeated(done, clicked),
        Comparison("rage clicks", _counts(dict.fromkeys(done.bursts, 1)), _counts(rage)),
        Comparison("dead clicks", _counts(done.dead), _counts(dead)),
        Comparison("requests", _requests(done.statuses), _requests(requests)),
        Comparison("console", _lines([f"{level}: {text}" for level, text in done.console]), _lines(console)),
        Comparison("inputs", _lines(list(done.inputs)), _lines(list(inputs))),
        Comparison("navigation", _lines(done.navigation), _lines(navigation)),
    ]


def compare_timeline(page: Page, done: PerformedActions) -> Comparison:
    """Returns the number of clicks of each rage click, as shown on the open page of the replay."""
    marks = page.locator("#marks [data-kind=rage_click]")
    marks.first.wait_for()
    shown = [int(number) for text in marks.all_inner_texts() for number in re.findall(r"clicks (\d+),", text)]
    did = ", ".join(map(str, sorted(done.bursts.values())))
    return Comparison(
        "clicks that make up the rage click (timeline)", did, ", ".join(map(str, sorted(shown))) or NOTHING
    )


def _repeated(done: PerformedActions, clicked: Counter[str]) -> Comparison:
    """Compares the click rows of elements that were clicked in bursts. There must be at least one row per burst
    and one row per single click.
    """
    did = {name: count + done.clicks[name] for name, count in done.bursts.items()}
    stored = {name: clicked[name] for name in done.bursts}
    within = all(1 + done.clicks[name] <= stored[name] <= did[name] for name in did)
    return Comparison("repeated clicks", _counts(did), _counts(stored), ONCE_PER_SECOND if within else "")


def _element(data: Mapping[str, Any]) -> str:
    return str(data["id"] or data["testid"])


def _input(data: Mapping[str, Any]) -> str:
    """Returns the id of the element that the selector ends with."""
    return re.sub(r"^.*#", "", re.sub(r"[.\[].*$", "", re.sub(r"^.*> ", "", data["selector"])))


def _counts(counted: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counted.items()) if count) or NOTHING


def _requests(counted: Mapping[tuple[str, str, int], int]) -> str:
    return _counts({f"{method} {path} {status}:": count for (method, path, status), count in counted.items()})


def _lines(texts: list[str]) -> str:
    return ", ".join(sorted(texts)) or NOTHING
