"""A selector for one clicked element is converted to conditions on rows, or refused with a reason."""

from __future__ import annotations

import pytest

from ingest.web.selector import CHARACTERS_MAX, PARTS_MAX, Selector, parse_selector


@pytest.mark.parametrize(
    ("text", "columns", "classes"),
    [
        ("button", {"click_tag": "button"}, ()),
        ("BUTTON#buy", {"click_tag": "button", "click_id": "buy"}, ()),
        (".btn.primary", {}, ("btn", "primary")),
        ("*.btn", {}, ("btn",)),
        (r"a.md\:flex", {"click_tag": "a"}, ("md:flex",)),
        ('[data-testid="buy now"]', {"click_testid": "buy now"}, ()),
        ("[role=button][aria-label='Go']", {"click_role": "button", "click_aria_label": "Go"}, ()),
        ("#" + "x" * 70, {"click_id": "x" * 64}, ()),
    ],
)
def test_an_element_is_matched_by_columns_of_click_rows(
    text: str, columns: dict[str, str], classes: tuple[str, ...]
):
    """A selector becomes conditions on the columns of click rows, with values truncated as in the parser."""
    assert parse_selector(text) == Selector(tuple(columns.items()), classes)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "1 to 500 characters"),
        ("a" * (CHARACTERS_MAX + 1), "1 to 500 characters"),
        ("div > button", "' > button' is not supported"),
        ("a:hover", "':hover' is not supported"),
        ("[href='/x']", r"\[href\] is not stored for clicks"),
        (".x" * (PARTS_MAX + 1), "'.x' is not supported"),
        ("#a' OR 1=1 --", "is not supported"),
    ],
)
def test_selectors_that_rows_cannot_match_are_refused(text: str, error: str):
    with pytest.raises(ValueError, match=error):
        parse_selector(text)
