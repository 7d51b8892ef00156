"""Evaluates a bucket's settings: retention, holds, lifecycle rules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

RETENTION_DAYS = (30, 60, 90)
DAY_SECONDS = 86_400
NONCURRENT_CONDITIONS = frozenset(("numNewerVersions", "daysSinceNoncurrentTime", "noncurrentTimeBefore"))


def expires(rules: Iterable[Mapping[str, Any]], days: int, condition: str = "age") -> bool:
    """Returns whether a lifecycle rule with this condition deletes all objects with this retention on time."""
    return any(
        _deletes(rule)
        and _prefixes(rule, days, within=False)
        and not (rule.get("condition", {}).keys() - {condition, "matchesPrefix"})
        and rule["condition"].get(condition, days + 1) <= days
        for rule in rules
    )


def premature_delete_days(rules: Iterable[Mapping[str, Any]], days: int) -> int | None:
    """Returns the lowest age, in days, at which a lifecycle rule deletes live objects before their retention of
    `days` days has passed; None if no rule does.
    """
    found = [
        int(condition[name])
        for rule in rules
        if _deletes(rule) and _prefixes(rule, days, within=True)
        for condition in [rule.get("condition", {})]
        if not (condition.keys() & NONCURRENT_CONDITIONS or condition.get("isLive") is False)
        for name in ("age", "daysSinceCustomTime")
        if int(condition.get(name, days)) < days
    ]
    return min(found, default=None)


def _deletes(rule: Mapping[str, Any]) -> bool:
    return bool(rule.get("action", {}).get("type") == "Delete")


def _prefixes(rule: Mapping[str, Any], days: int, *, within: bool) -> bool:
    """Returns whether the rule applies to all objects with this retention or, if `within` is True, to at least
    some of them.
    """
    prefixes = rule.get("condition", {}).get("matchesPrefix")
    name = f"{days}/"
    return prefixes is None or any(
        name.startswith(prefix) or (within and prefix.startswith(name)) for prefix in prefixes
    )


def missing_rules(rules: Iterable[Mapping[str, Any]], layout: str) -> Iterator[str]:
    """Yields one sentence for each difference between a bucket's lifecycle rules and those that `migrate` sets."""
    rules = list(rules)
    missing = [days for days in RETENTION_DAYS if not expires(rules, days)]
    if missing:
        yield (
            f"nothing deletes {', '.join(f'{days}/' for days in missing)} after as many days: add lifecycle rules"
        )
    custom = [days for days in RETENTION_DAYS if not expires(rules, days, "daysSinceCustomTime")]
    if layout == "packed" and custom:
        yield (
            f"no rule on daysSinceCustomTime for {', '.join(f'{days}/' for days in custom)}: "
            "objects rewritten by `erase` are kept for longer"
        )
    for days in RETENTION_DAYS:
        early = premature_delete_days(rules, days)
        if early is not None:
            yield f"a lifecycle rule deletes {days}/ after {early} days: recordings are lost; correct the rule"


def restrictions(properties: Mapping[str, Any]) -> Iterator[str]:
    """Yields one sentence for each property of a bucket (its JSON resource) that interferes with storing
    recordings.

    A repeated segment overwrites its object, and `erase` and lifecycle rules delete objects. An operation that a
    policy forbids fails, unless it overwrites an object with an identical segment.
    """
    period_seconds = int(properties.get("retentionPolicy", {}).get("retentionPeriod") or 0)
    if period_seconds:
        yield (
            f"a retention policy of {_days(period_seconds)} protects every object: a segment that is sent again "
            "with other content becomes a dead letter, and `erase` fails; remove the policy"
        )
    if properties.get("objectRetention", {}).get("mode"):
        yield "object retention is enabled: an object that is locked can be neither replaced nor erased"
    if properties.get("defaultEventBasedHold"):
        yield (
            "new objects get an event-based hold: they cannot be replaced, erased or expired; disable the "
            "default hold"
        )
    if properties.get("versioning", {}).get("enabled"):
        yield "versioning keeps replaced and erased segments: disable it"
    soft_delete_seconds = int(properties.get("softDeletePolicy", {}).get("retentionDurationSeconds") or 0)
    if soft_delete_seconds:
        yield f"soft delete keeps erased bytes for {_days(soft_delete_seconds)}: set it to 0"
    if properties.get("billing", {}).get("requesterPays"):
        yield "requester pays is enabled, but uploads name no project to bill: disable it"


def _days(seconds: int) -> str:
    return f"{seconds / DAY_SECONDS:.3g} days" if seconds >= DAY_SECONDS else f"{seconds} seconds"
