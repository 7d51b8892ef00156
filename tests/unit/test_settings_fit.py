"""Each configurable limit of the core has a setting of the same name. `check` reports inconsistent settings."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from ingest.core.limits import Limits, RejectPolicy
from ingest.core.parse import ParseRules
from ingest.operate.check import deadlines
from ingest.operate.finding import Severity
from ingest.reader.configuration import limits_of, rules_of
from ingest.settings import Settings

# Limits without a setting. `parked_renew_seconds` must be shorter than a parked batch's lease, which has a fixed
# length. `commit_repeat_seconds` is the interval at which the last commit of an idle partition is repeated.
UNCONFIGURABLE = {"parked_renew_seconds", "commit_repeat_seconds"}


def other_value(value: Any) -> Any:
    """Returns an allowed value of the same type that differs from the given value."""
    if isinstance(value, RejectPolicy):
        return next(policy for policy in RejectPolicy if policy is not value)
    return max(value // 2, 1) if isinstance(value, int) else value / 2


def test_every_bound_of_the_core_is_a_setting_with_the_same_default() -> None:
    """Every bound of the core is a setting, and its default in the core equals the documented default."""
    settings = Settings()

    bounds = {field.name for kind in (Limits, ParseRules) for field in fields(kind)}
    assert bounds - UNCONFIGURABLE <= Settings.model_fields.keys()
    assert limits_of(settings) == Limits()
    assert rules_of(settings) == ParseRules()


@pytest.mark.parametrize("name", [field.name for field in fields(Limits) if field.name not in UNCONFIGURABLE])
def test_a_configured_bound_reaches_the_core(name: str) -> None:
    """A setting changes the bound of the same name in the core, and no other bound."""
    value = other_value(getattr(Limits(), name))
    changed = Settings.model_validate({name: value})

    found = limits_of(changed)

    assert getattr(found, name) == value
    assert [
        field.name for field in fields(Limits) if getattr(found, field.name) != getattr(Limits(), field.name)
    ] == [name]


def test_the_defaults_are_consistent() -> None:
    """The defaults are consistent, so `check` reports nothing for an unconfigured installation."""
    assert list(deadlines(Settings())) == []


def test_check_says_that_flower_lists_no_tasks_without_events() -> None:
    """If task events are disabled, `check` states what Flower does not show, but not as a warning."""
    (finding,) = deadlines(Settings(task_events=False))

    assert finding.level is Severity.OK
    assert "Flower lists no tasks" in finding.said


def test_check_names_inconsistent_settings() -> None:
    """`check` reports inconsistent settings, including values exactly at the limit, and names the settings to
    change.
    """
    (finding,) = deadlines(Settings(task_visibility_seconds=180, sink_timeout_seconds=30))

    assert (finding.name, finding.level) == ("visibility of tasks", "warning")
    assert "REPLAYS_" in finding.advice


def test_a_visibility_timeout_just_above_the_longest_run_is_consistent() -> None:
    """A visibility timeout that is one second longer than six sink timeouts is accepted."""
    assert list(deadlines(Settings(task_visibility_seconds=181, sink_timeout_seconds=30))) == []


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"flush_deadline_seconds": 600, "staged_ttl_seconds": 600}, "staged bytes would expire"),
        ({"drain_deadline_seconds": 45, "kafka_session_timeout_seconds": 45}, "before they are drained"),
        (
            {"kafka_group_protocol": "consumer", "kafka_options": {"heartbeat.interval.ms": "2000"}},
            "cannot be set with REPLAYS_KAFKA_GROUP_PROTOCOL=consumer",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(values: dict[str, Any], problem: str) -> None:
    """Settings that contradict each other are refused, and the error names both."""
    with pytest.raises(ValueError, match=problem):
        Settings.model_validate(values)


def test_a_copy_with_the_addresses_of_the_local_stack_says_so() -> None:
    """Settings whose addresses are those of the running local stack are marked, and the original settings are
    unchanged.
    """
    settings = Settings()

    assert settings.taken_from_local_stack().from_local_stack
    assert not settings.from_local_stack
