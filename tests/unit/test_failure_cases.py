"""docs/failure-cases.md cites only existing tests, and names the test of each case."""

from __future__ import annotations

import re

import pytest

from tests.kit.named_tests import CITED_TEST, missing
from tests.kit.paths import ROOT

PAGE = (ROOT / "docs" / "failure-cases.md").read_text()
UNTESTED = "no test"
SECTIONS = [section for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:] if "\n| case |" in section]


def test_every_test_that_the_page_names_exists() -> None:
    """Every test that the page names exists; a row whose test was renamed or removed proves nothing."""
    assert missing("".join(SECTIONS)) == []


def test_there_is_a_section_for_each_kind() -> None:
    """Each of the eight kinds of fault has a section with a table, and the list of uncovered cases has no
    table.
    """
    assert len(SECTIONS) == 8
    assert "\n## Not covered\n" in PAGE


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.partition("\n")[0])
def test_each_case_cites_its_test_or_states_that_there_is_none(section: str) -> None:
    """Each row has three cells, and the last cell cites a test or states that there is none."""
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")][2:]

    assert rows
    assert [row for row in rows if len(row) != 3] == []
    assert [row for row in rows if not CITED_TEST.search(row[2]) and row[2] != UNTESTED] == []
