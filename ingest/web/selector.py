"""Converts a selector of a clicked element, like `button#buy.primary[data-testid="buy"]`, to conditions on rows.

Supports only compound selectors, because rows contain the clicked element but not its ancestors.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

CHARACTERS_MAX = 500
PARTS_MAX = 16

_NAME = r"(?:[\w-]|[^\x00-\x7f]|\\.)+"
_tag = re.compile(rf"\*|{_NAME}")
_part = re.compile(
    rf"""(?P<kind>[.#])(?P<name>{_NAME})
    |\[\s*(?P<attribute>[\w-]+)\s*=\s*(?:"(?P<double>[^"]*)"|'(?P<single>[^']*)'|(?P<bare>{_NAME}))\s*\]""",
    re.VERBOSE,
)
# The column of each attribute, and the length at which the parser truncates it (docs/rows.md).
_COLUMNS = {
    "id": ("click_id", 64),
    "alt": ("click_alt", 64),
    "aria-label": ("click_aria_label", 64),
    "title": ("click_title", 64),
    "testid": ("click_testid", 64),
    "data-testid": ("click_testid", 64),
    "data-test-id": ("click_testid", 64),
    "data-sentry-component": ("click_component_name", 64),
    "role": ("click_role", 32),
}


@dataclass(frozen=True, slots=True)
class Selector:
    """`columns`: required values of a click's columns. `classes`: required classes."""

    columns: tuple[tuple[str, str], ...]
    classes: tuple[str, ...]


def parse_selector(text: str) -> Selector:
    """Parses a selector. Raises ValueError; the message quotes the unsupported part or states the length limit."""
    text = text.strip()
    if not text or len(text) > CHARACTERS_MAX:
        raise ValueError(f"a selector has 1 to {CHARACTERS_MAX} characters")
    columns: list[tuple[str, str]] = []
    classes: list[str] = []
    tag = _tag.match(text)
    at = tag.end() if tag else 0
    if tag and tag[0] != "*":
        columns.append(("click_tag", _plain(tag[0]).lower()[:32]))
    while at < len(text):
        part = _part.match(text, at)
        if part is None or len(columns) + len(classes) >= PARTS_MAX:
            raise ValueError(
                f"{text[at:][:40]!r} is not supported: name one element by tag, #id, .class and "
                f"[attribute=value], where the attribute is one of {', '.join(sorted(_COLUMNS))}"
            )
        at = part.end()
        if part["kind"] == ".":
            classes.append(_plain(part["name"]))
            continue
        attribute = "id" if part["kind"] else part["attribute"]
        if attribute not in _COLUMNS:
            raise ValueError(
                f"[{attribute}] is not stored for clicks; stored attributes: {', '.join(sorted(_COLUMNS))}"
            )
        quoted = part["double"] if part["double"] is not None else part["single"]
        value = quoted if quoted is not None else _plain(part["name"] or part["bare"])
        column, characters_max = _COLUMNS[attribute]
        columns.append((column, value[:characters_max]))
    return Selector(tuple(columns), tuple(classes))


def _plain(name: str) -> str:
    r"""Removes the backslashes of an escaped name such as `md\:flex`."""
    return re.sub(r"\\(.)", r"\1", name)
