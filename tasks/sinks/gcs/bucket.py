"""What a bucket's own settings mean for recordings: retention, holds, lifecycle rules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

RETENTION_DAYS = (30, 60, 90)
DAY_SECONDS = 86_400


def expires(rules: Iterable[Mapping[str, Any]], days: int) -> bool:
    """Whether a lifecycle rule deletes objects of this retention in time."""
    for rule in rules:
        condition = rule.get("condition", {})
        prefixes = condition.get("matchesPrefix")
        covers = prefixes is None or f"{days}/" in prefixes
        if rule.get("action", {}).get("type") == "Delete" and covers and condition.get("age", days + 1) <= days:
            return True
    return False


def missing_rules(rules: Iterable[Mapping[str, Any]], layout: str) -> Iterator[str]:
    """One sentence for each kind of lifecycle rule that recordings need and the bucket lacks."""
    rules = list(rules)
    missing = [days for days in RETENTION_DAYS if not expires(rules, days)]
    if missing:
        yield (
            f"nothing deletes {', '.join(f'{days}/' for days in missing)} after as many days: add lifecycle rules"
        )
    if layout == "packed" and not any("daysSinceCustomTime" in rule.get("condition", {}) for rule in rules):
        yield "no rule on daysSinceCustomTime: what `erase` rewrites is kept for longer"


def hindrances(properties: Mapping[str, Any]) -> Iterator[str]:
    """One sentence for each property of a bucket (its JSON resource) that stands in the way of recordings.

    A segment that is sent twice overwrites its object, `erase` deletes, and lifecycle rules expire: a policy that
    forbids one of those does not stop equal segments, but everything else.
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
            "new objects get an event-based hold: nothing can replace, erase or expire them; "
            "switch the default hold off"
        )
    if properties.get("versioning", {}).get("enabled"):
        yield "versioning keeps what a repeated segment replaces, and what is erased: switch it off"
    soft_delete_seconds = int(properties.get("softDeletePolicy", {}).get("retentionDurationSeconds") or 0)
    if soft_delete_seconds:
        yield f"soft delete keeps erased bytes for {_days(soft_delete_seconds)}: set it to 0"
    if properties.get("billing", {}).get("requesterPays"):
        yield "the requester pays, and uploads name no project to be billed: switch it off"


def _days(seconds: int) -> str:
    return f"{seconds / DAY_SECONDS:.3g} days" if seconds >= DAY_SECONDS else f"{seconds} seconds"
