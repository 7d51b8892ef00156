"""Describes the content of a page as rows that can be compared: text, position, size and colors, including shadow
roots and iframes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from playwright.sync_api import Frame

PIXELS_MAX = 1.0
# Masked text and blocked elements are expected to differ. The SDK also blocks iframes without a `src`. A lone
# surrogate is drawn as a replacement character, both in the original and in the replayed page.
_ROWS = """() => {
  const rows = [];
  const skipped = new Set(["SCRIPT", "STYLE", "LINK", "META", "TITLE", "HEAD", "NOSCRIPT", "TEMPLATE", "BASE"]);
  const name = (element) => element.localName + (element.id ? `#${element.id}` : "");
  const visit = (parent, path) => {
    for (const element of parent.children) {
      if (skipped.has(element.tagName.toUpperCase())) continue;
      const style = element.ownerDocument.defaultView.getComputedStyle(element);
      if (style.display === "none") continue;
      const here = `${path} > ${name(element)}`;
      if (element.matches(".sentry-mask, .sentry-block, iframe[srcdoc], iframe:not([id])")) continue;
      const box = element.getBoundingClientRect();
      const own = [...element.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data).join("");
      rows.push({
        path: here,
        text: own.toWellFormed().replace(/\\s+/g, " ").trim(),
        box: [box.x, box.y, box.width, box.height],
        look: [style.color, style.backgroundColor, style.fontSize, style.fontWeight, style.borderTopStyle],
        state: [element.open, element.checked, element.value, element.scrollTop].map((one) => String(one ?? "")),
      });
      if (element.shadowRoot) visit(element.shadowRoot, `${here} > shadow`);
      if (element.localName === "iframe" && element.contentDocument?.body)
        visit(element.contentDocument.documentElement, `${here} > frame`);
      visit(element, here);
    }
  };
  visit(document.documentElement, "html");
  return rows;
}"""


@dataclass(frozen=True, slots=True)
class Row:
    """One visible element. `box`: x, y, width, height in CSS pixels of its frame."""

    path: str
    text: str
    box: tuple[float, ...]
    look: tuple[str, ...]
    state: tuple[str, ...]


def structure(frame: Frame) -> list[Row]:
    """Returns the visible elements of a page in document order."""
    rows: list[dict[str, Any]] = frame.evaluate(_ROWS)
    return [Row(r["path"], r["text"], tuple(r["box"]), tuple(r["look"]), tuple(r["state"])) for r in rows]


def differences(played: list[Row], original: list[Row]) -> list[str]:
    """Returns one line per element that differs, or that is in only one of the pages."""
    ours, theirs = _by_path(played), _by_path(original)
    found = [f"not played: {path}" for path in theirs if path not in ours]
    found += [f"only played: {path}" for path in ours if path not in theirs]
    for path in ours.keys() & theirs.keys():
        a, b = ours[path], theirs[path]
        if a.text != b.text:
            found.append(f"{path}: text {a.text[:80]!r}, originally {b.text[:80]!r}")
        if any(abs(one - other) > PIXELS_MAX for one, other in zip(a.box, b.box, strict=True)):
            found.append(f"{path}: box {a.box}, originally {b.box}")
        if a.look != b.look:
            found.append(f"{path}: look {a.look}, originally {b.look}")
        if a.state != b.state:
            found.append(f"{path}: state {a.state}, originally {b.state}")
    return sorted(found)


def _by_path(rows: list[Row]) -> dict[str, Row]:
    """Returns rows by path; equal paths are numbered in document order."""
    found: dict[str, Row] = {}
    for row in rows:
        path, number = row.path, 1
        while path in found:
            number += 1
            path = f"{row.path} ({number})"
        found[path] = row
    return found
