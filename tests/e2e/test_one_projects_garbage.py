"""One project sends as many garbage messages as all other projects together send valid ones, while the reader is
killed repeatedly.

The other projects lose nothing and are not delayed. The project is named in the log, the metrics and `status`, and
the steps of the runbook's section on such projects are followed as written.
"""

from __future__ import annotations

import re
from itertools import count
from pathlib import Path

import pytest
import yaml

from ingest.testing.messages import envelope, recording
from tests.kit.paths import ROOT
from tests.kit.whole_system import System, until

pytestmark = pytest.mark.timeout(300)
GARBAGE = 4242
OTHERS = (11, 12, 13, 14, 15)
RESTARTS = 10
MESSAGES_PER_READER = 20  # Valid messages per reader process; there are as many invalid ones.
WINDOW = 100
SHED_METRIC = "replays_reader_project_shed"
numbers = count()


def valid_messages(amount: int) -> list[bytes]:
    """Returns valid segments that alternate between several projects."""
    return [recording(segment_id=number, project_id=OTHERS[number % 5]) for number in next_numbers(amount)]


def garbage(amount: int) -> list[bytes]:
    """Returns messages that name their project but can never be parsed."""
    return [envelope(b"no header %d" % number, project_id=GARBAGE) for number in next_numbers(amount)]


def next_numbers(amount: int) -> list[int]:
    return [next(numbers) for _ in range(amount)]


def alternate(amount: int) -> list[bytes]:
    """Returns alternating valid and garbage messages."""
    return [value for pair in zip(valid_messages(amount), garbage(amount), strict=True) for value in pair]


def is_shed(system: System) -> bool:
    return system.metric(SHED_METRIC, project=str(GARBAGE)) == 1


def section(name: str) -> str:
    """Returns a section of the runbook."""
    return (ROOT / "docs" / "runbook.md").read_text().split(f"### {name}\n")[1].split("\n### ")[0]


def restart(system: System, **settings: str) -> None:
    assert system.stop_reader() == 0
    system.start_reader(**settings)


def test_other_projects_are_durable_while_ten_readers_die_over_garbage(tmp_path: Path) -> None:
    """Although readers are killed ten times while one project sends garbage, the messages of other projects become
    durable.

    The steps of the runbook are then followed: inspect, drop the project's rejects, disable the project. After
    these steps the alert resolves.
    """
    # A killed reader's partitions are reassigned when its session ends.
    session = {"kafka_session_timeout_seconds": "3", "drain_deadline_seconds": "2"}
    with System(tmp_path, reject_window=str(WINDOW), **session) as system:
        sent = 0
        for _ in range(RESTARTS):
            system.send_all(alternate(MESSAGES_PER_READER))
            sent += MESSAGES_PER_READER
            until(
                lambda: system.metric("replays_reader_messages_parsed_total") >= MESSAGES_PER_READER,
                60,
                "the reader to parse",
            )
            system.reader.kill()

        system.send_all(alternate(WINDOW))
        sent += WINDOW
        system.wait_until_committed()

        assert system.reader.starts == RESTARTS + 1
        assert system.query("SELECT count() FROM replay_segments FINAL") == [(sent,)]
        assert system.json("reconcile")["ok"]  # Nothing is missing, and each reject has a dead letter.
        assert_named(system)
        assert_steps_work(system)


def assert_named(system: System) -> None:
    """Asserts that the project is named in the log, in the metric behind the alert, and in `status`.

    No reader halted.
    """
    logged = [line for line in system.reader.log_path.read_text().splitlines() if '"project_shed"' in line]
    assert logged
    assert all(f'"project": {GARBAGE}' in line for line in logged)
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())
    (alert,) = [
        rule for group in rules["groups"] for rule in group["rules"] if rule["alert"] == "ReplaysProjectShed"
    ]
    assert alert["expr"].strip() == f"max by (project) ({SHED_METRIC}) == 1"
    assert is_shed(system)
    assert system.metric(SHED_METRIC) == 1  # No reject comes from another project.
    assert system.metric("replays_reader_halted") == 0

    def named() -> bool:
        return f"SHED, mostly rejects: project {GARBAGE}" in re.sub(r"[│\s]+", " ", system.command("status"))

    until(named, 30, "the reader's next heartbeat")


def assert_steps_work(system: System) -> None:
    """Runs each command and applies each setting as written in the section, in order."""
    commands = re.findall(r"`replays-ingest ([^`]+)`|`(dlq show <id>)`", section("ReplaysProjectShed"))
    status, listed, show, kill = [(first or second).split() for first, second in commands]
    (setting,) = re.findall(r"`(REPLAYS_[A-Z_]+)=(\w+)`", section("ReplaysProjectShed"))
    assert str(GARBAGE) in system.command(*status)
    letter = system.json(*listed)["letters"][-1]
    assert str(GARBAGE) in system.command(*[letter["id"] if word == "<id>" else word for word in show])

    restart(system, **{setting[0].removeprefix("REPLAYS_").lower(): setting[1]})
    system.send_all(alternate(WINDOW))
    system.wait_until_committed()
    assert system.metric("replays_reader_drops_total", reason="shed") > 0

    system.command(*[str(GARBAGE) if word == "<project>" else word for word in kill], "--yes")

    def followed() -> bool:
        system.send_all(garbage(1))
        return system.metric("replays_reader_drops_total", reason="killed") > 0

    until(followed, 60, "the reader to follow")
    assert is_shed(system)
    system.send_all([*garbage(WINDOW), *valid_messages(WINDOW)])
    system.wait_until_committed()
    until(lambda: not is_shed(system), 60, "the alert to clear")
