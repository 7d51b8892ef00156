"""The pages that explain the structure are correct: the tree, the path of one message, and the decision
records.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("ingest", "tasks", "tools")
RECORDS = sorted((ROOT / "docs/decisions").glob("[0-9]*.md"))
PAGE_LINES_MAX = 60
LINE_CHARACTERS_MAX = 128


# The tree of ARCHITECTURE.md


def listed_paths() -> list[str]:
    """Returns the folders and files of the tree as paths; the indentation of a line determines its parent."""
    text = (ROOT / "ARCHITECTURE.md").read_text().split("## The tree")[1]
    block = text.split("```")[1]
    found: list[str] = []
    above: list[str] = []
    for line in block.strip().splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        above = [*above[:depth], name]
        found.append("".join(above))
    return found


def test_the_tree_has_one_line_per_package():
    """The tree has exactly one line per package."""
    packages = [
        f"{path.parent.relative_to(ROOT).as_posix()}/"
        for name in PACKAGES
        for path in (ROOT / name).rglob("__init__.py")
    ]
    lines = listed_paths()

    assert sorted(line for line in lines if line.startswith(tuple(f"{name}/" for name in PACKAGES))) == sorted(
        packages
    )
    assert [line for line in lines if not (ROOT / line).exists()] == []
    assert len(lines) == len(set(lines))


# The path of a message in docs/follow-a-message.md


def steps() -> list[tuple[int, str, str]]:
    """Returns the number, file and function of each step."""
    text = (ROOT / "docs/follow-a-message.md").read_text()
    rows = re.findall(r"^\| (\d+) \| `([^`]+)` \| `([^`]+)` \|", text, flags=re.MULTILINE)
    return [(int(number), file, function) for number, file, function in rows]


def functions_of(path: Path) -> set[str]:
    """Returns the functions of a file, as `function` and `Class.method`."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
    return found


def test_every_step_of_a_message_is_a_function():
    """Every file and every function on the page exists."""
    assert [step for step in steps() if step[2] not in functions_of(ROOT / step[1])] == []


def test_the_path_of_a_message_has_no_repetition():
    """The steps of a message's path are numbered without gaps, and no function appears twice."""
    walked = steps()

    assert len(walked) > 40
    assert [number for number, _, _ in walked] == list(range(1, len(walked) + 1))
    assert len({(file, function) for _, file, function in walked}) == len(walked)


# The decision records


def test_records_are_numbered_without_gaps():
    """Decision records are numbered from 001 without gaps, and each title repeats the number."""
    numbers = [path.name[:3] for path in RECORDS]

    assert numbers == [f"{number:03d}" for number in range(1, len(RECORDS) + 1)]
    assert [path.name for path in RECORDS if not path.read_text().startswith(f"# {path.name[:3]}. ")] == []


def test_the_index_lists_every_record_once():
    """The index lists every decision record once, with its title."""
    index = (ROOT / "docs/decisions/README.md").read_text()
    lines = re.findall(r"^- \[(\d{3})\]\(([^)]+)\) (.+)$", index, flags=re.MULTILINE)
    titles = {path.name: path.read_text().splitlines()[0].split(". ", 1)[1] for path in RECORDS}

    assert sorted(lines) == [(path.name[:3], path.name, titles[path.name]) for path in RECORDS]


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.name)
def test_a_record_is_one_page_and_has_every_section(path: Path):
    """A decision record fits on one page and has every section.

    The sections are status, code and enforcement, context, decision, reasons and consequences.
    """
    text = path.read_text()
    lines = text.splitlines()
    headings = re.findall(r"^## (.+)$", text, flags=re.MULTILINE)

    assert len(lines) <= PAGE_LINES_MAX
    assert max(len(line) for line in lines if not line.startswith("|")) <= LINE_CHARACTERS_MAX
    assert lines[2].startswith("Status: ")
    assert "Code: " in text
    assert "\nEnforced by " in text
    assert headings[0] == "Context"
    assert {"Decision", "Consequences"} <= set(headings)
    assert any(heading.startswith(("Why", "Evidence")) for heading in headings)
