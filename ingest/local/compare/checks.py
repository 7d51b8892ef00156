"""Pure functions that compare expected with actual contents, and return counts and examples of differences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from ingest.local.compare.report import Check
from ingest.local.load.expectation import Total

EXAMPLES_MAX = 5
K = TypeVar("K")
V = TypeVar("V")


def compare_maps(
    name: str, expected: Mapping[K, V], found: Mapping[K, V], *, extra_is_error: bool = True, note: str = ""
) -> Check:
    """Compares two maps by key and value."""
    missing = [key for key in expected if key not in found]
    extra = [key for key in found if key not in expected] if extra_is_error else []
    wrong = [key for key, value in expected.items() if key in found and found[key] != value]
    examples = [f"missing: {_text(key)}" for key in missing[:EXAMPLES_MAX]]
    examples += [f"unexpected: {_text(key)}" for key in extra[:EXAMPLES_MAX]]
    examples += [
        f"{_text(key)}: {_text(found[key])} instead of {_text(expected[key])}" for key in wrong[:EXAMPLES_MAX]
    ]
    return Check(
        name, len(expected), len(found), len(missing), len(extra), len(wrong), tuple(examples[:EXAMPLES_MAX]), note
    )


def compare_sets(
    name: str, expected: Iterable[K], found: Iterable[K], *, extra_is_error: bool = True, note: str = ""
) -> Check:
    """Compares two sets member by member."""
    return compare_maps(
        name, dict.fromkeys(expected, 1), dict.fromkeys(found, 1), extra_is_error=extra_is_error, note=note
    )


def compare_facts(expected: Mapping[str, int], found: Mapping[str, int], *, extra_is_error: bool = True) -> Check:
    """Compares row counts of the analytics table by event type."""
    problems = []
    missing = extra = 0
    for name in sorted({*expected, *found}):
        wanted, have = expected.get(name, 0), found.get(name, 0)
        missing += max(0, wanted - have)
        extra += max(0, have - wanted) if extra_is_error else 0
        if have < wanted or (have > wanted and extra_is_error):
            problems.append(f"{name}: {have} rows instead of {wanted}")
    note = f"rows of {len(expected)} event types, distinct by row_id"
    sums = (sum(expected.values()), sum(found.values()))
    return Check("BigQuery facts", *sums, missing, extra, 0, tuple(problems[:EXAMPLES_MAX]), note)


def compare_metrics(expected: Mapping[str, Total], found: Mapping[str, Total], *, exact: bool) -> Check:
    """Compares totals by name.

    If `exact` is false, higher totals are allowed, because a crash may repeat metrics.
    """
    problems: list[str] = []
    missing = extra = wrong = 0
    for name, total in sorted(expected.items()):
        have = found.get(name, Total(0, 0.0))
        missing += max(0, total.count - have.count)
        extra += max(0, have.count - total.count) if exact else 0
        differs = have.count == total.count and _sums_differ(have.sum, total.sum)
        wrong += differs
        if differs or have.count < total.count or (exact and have.count != total.count):
            problems.append(f"{name}: {_total_text(have)} instead of {_total_text(total)}")
    count = sum(total.count for total in expected.values())
    seen = sum(total.count for name, total in found.items() if name in expected)
    note = "values by name" + ("" if exact else ", at least once")
    return Check("Datadog metrics", count, seen, missing, extra, wrong, tuple(problems[:EXAMPLES_MAX]), note)


def _total_text(total: Total) -> str:
    """Returns the total as text: the number of values and, if known, their sum."""
    return f"{total.count} values" if total.sum is None else f"{total.count} values (sum {total.sum:g})"


def _sums_differ(found: float | None, expected: float | None) -> bool:
    return found is not None and expected is not None and abs(found - expected) > 1e-6 * max(1.0, abs(expected))


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return "/".join(_text(part) for part in value)
    text = str(value)
    return text if len(text) <= 90 else text[:87] + "..."
