"""Tests how facts are compared with the actions performed on the page, and how the result is shown in a table."""

from __future__ import annotations

from typing import Any

import pytest

from tools.sdks.__main__ import Line, main, table
from tools.sdks.comparing import ONCE_PER_SECOND, Comparison, Facts, compared
from tools.sdks.driving import PerformedActions


def done_in_the_page() -> PerformedActions:
    """Returns the actions on the page: one click, seven rage clicks, one request, one console message, one
    input, one navigation.
    """
    done = PerformedActions(inputs={"name"}, console=[("error", "failed")], navigation=["/?page=cart"])
    done.clicks["checkout"] = 1
    done.bursts["coupon"] = 7
    done.statuses["POST", "/shop/cart", 200] = 1
    return done


def facts_of_it() -> Facts:
    """The correct facts."""
    return [
        ("ui.click", on("checkout")),
        ("ui.click", on("coupon")),
        ("ui.rageClick", on("coupon")),
        ("resource.fetch", {"method": "POST", "url": "http://127.0.0.1:1/shop/cart", "status_code": "200"}),
        ("console", {"level": "error", "message": "failed"}),
        ("ui.input", {"selector": "label > input#name"}),
        ("navigation", {"to": "http://127.0.0.1:1/?page=cart"}),
    ]


def on(element: str) -> dict[str, Any]:
    return {"id": element, "testid": ""}


def test_correct_facts_are_accepted():
    """Facts that match the actions on the page are accepted.

    The number of repeated clicks differs, but the comparison states the reason. All other numbers are equal.
    """
    found = compared(facts_of_it(), done_in_the_page())

    assert [each.kind for each in found if not each.is_accepted] == []
    assert [(each.kind, each.reason) for each in found if not each.is_equal] == [
        ("repeated clicks", ONCE_PER_SECOND)
    ]


@pytest.mark.parametrize(
    ("left_out", "kind"),
    [*enumerate(("clicks", "repeated clicks", "rage clicks", "requests", "console", "inputs", "navigation"))],
)
def test_a_missing_fact_is_found(left_out: int, kind: str):
    """If a fact is missing, the comparison reports a difference only for this kind of fact."""
    facts = facts_of_it()
    del facts[left_out]

    assert [each.kind for each in compared(facts, done_in_the_page()) if not each.is_accepted] == [kind]


@pytest.mark.parametrize(
    ("added", "kind"),
    [
        (("ui.deadClick", on("checkout")), "dead clicks"),
        (("ui.rageClick", on("checkout")), "rage clicks"),
        (("ui.click", on("watch")), "clicks"),
        (("console", {"level": "warning", "message": "?"}), "console"),
    ],
)
def test_a_fact_of_something_that_was_not_done_is_found(added: tuple[str, dict[str, Any]], kind: str):
    """If no action explains a fact, the comparison reports a difference only for this kind of fact."""
    found = compared([*facts_of_it(), added], done_in_the_page())

    assert [each.kind for each in found if not each.is_accepted] == [kind]


def test_equal_lines_of_several_versions_are_one_line_of_the_table():
    """SDK versions with identical results share one row of the table, and a version with different results has its
    own row.
    """
    equal, unequal = Comparison("clicks", "a 1", "a 1"), Comparison("clicks", "a 1", "none")
    inputs = [Line(version, Comparison("inputs", "b", "b")) for version in ("7.0.0", "8.0.0", "9.0.0")]
    printed = table([Line("7.0.0", equal), Line("8.0.0", unequal), Line("9.0.0", equal), *inputs])

    assert printed.splitlines()[2:] == [
        "| 7.0.0, 9.0.0 | clicks | a 1 | a 1 | yes |",
        "| 8.0.0 | clicks | a 1 | none | NO |",
        "| all | inputs | b | b | yes |",
    ]


def test_a_version_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]):
    """Text that is not a version, such as a tag or a range, is refused."""
    with pytest.raises(SystemExit) as ended:
        main(["latest"])

    assert ended.value.code == 2
    assert "latest is neither a major nor an exact version" in capsys.readouterr().err
