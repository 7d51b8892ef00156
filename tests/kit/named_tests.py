"""Finds tests that a text cites as `path::name`, and checks that they exist."""

from __future__ import annotations

import ast
import re
from functools import cache

from tests.kit.paths import ROOT

CITED_TEST = re.compile(r"(tests/[\w/]+\.py)(?:::(\w+))?")


@cache
def names_of(path: str) -> frozenset[str]:
    """Returns the names of the test functions of a file; the result is empty if the file is missing."""
    file = ROOT / path
    if not file.is_file():
        return frozenset()
    found = ast.walk(ast.parse(file.read_text()))
    return frozenset(node.name for node in found if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def missing(text: str) -> list[str]:
    """Returns the citations in the text that name no existing test."""
    return [
        f"{path}::{name}"
        for path, name in CITED_TEST.findall(text)
        if not name.startswith("test_") or name not in names_of(path)
    ]
