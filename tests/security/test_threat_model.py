"""SECURITY.md makes no claim without a test: every cited test exists, and each attacker's section cites tests."""

from __future__ import annotations

import re

import pytest

from tests.kit.named_tests import CITED_TEST, missing
from tests.kit.paths import ROOT

PAGE = (ROOT / "SECURITY.md").read_text()
ATTACKERS = (
    "A tenant, through recording content",
    "A producer, through headers and envelope",
    "A network neighbour",
    "An attacker with write access to Redis",
    "An operator's browser",
    "A local user",
)
WORDS_MAX = 1500


def test_every_test_that_the_threat_model_names_exists():
    """Every test that the threat model names exists; a claim whose test was renamed or removed would no longer
    be checked.
    """
    assert missing(PAGE) == []


@pytest.mark.parametrize(
    "named",
    [
        "tests/security/test_threat_model.py::test_that_there_is_not",
        "tests/security/test_gone.py::test_x",
        "tests/security/test_threat_model.py",
    ],
)
def test_a_name_that_is_no_test_is_found(named: str):
    """A citation that does not name a test is reported, and so is a citation of a file without a test."""
    assert len(missing(f"shown by {named}, among others")) == 1


@pytest.mark.parametrize("attacker", ATTACKERS)
def test_each_attacker_has_a_table_of_limits(attacker: str):
    """Each attacker has a table whose rows cite their tests, and the remaining risks are stated."""
    section = re.split(r"\n### ", PAGE.partition(f"{attacker}\n")[2])[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][2:]

    assert rows
    assert [row for row in rows if not CITED_TEST.search(row)] == []
    assert re.search(r"\nRemaining risks?: ", section)


def test_the_threat_model_is_two_pages():
    """The threat model is at most two pages long, so that it is short enough to read.

    The names of tests do not count towards the length.
    """
    assert len(CITED_TEST.sub("", PAGE).split()) <= WORDS_MAX
