"""Loads our templates and Flower's.

Our templates extend Flower's `base.html`, and every page links to the parked batches.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flower
from tornado.template import BaseLoader, Template

OWN_TEMPLATES = Path(__file__).parent / "templates"
UPSTREAM_TEMPLATES = Path(flower.__file__).parent / "templates"
_ITEM_END = b"</li>"


class Templates(BaseLoader):
    """Loads a template from our directory, otherwise from Flower's."""

    def resolve_path(self, name: str, parent_path: str | None = None) -> str:
        """Returns the name unchanged: names are relative to both folders, which have no subfolders."""
        return name

    def _create_template(self, name: str) -> Template:
        folder = OWN_TEMPLATES if (OWN_TEMPLATES / name).is_file() else UPSTREAM_TEMPLATES
        return Template((folder / name).read_bytes(), name=name, loader=self)


def with_parked_link(original: Callable[..., bytes]) -> Callable[..., bytes]:
    """Returns Flower's `render_string`, extended to add the link to the parked batches after the link to the
    broker.
    """

    def render_string(handler: Any, template_name: str, **values: Any) -> bytes:
        page = original(handler, template_name, **values)
        if template_name != "navbar.html":
            return page
        broker = f'href="{handler.reverse_url("broker")}"'.encode()
        at = page.find(_ITEM_END, page.find(broker))
        if broker not in page or at < 0:
            return page
        is_active = values.get("active_tab") == "parked"
        marks = ' active" aria-current="page' if is_active else ""
        link = (
            f'{_ITEM_END.decode()}<li class="nav-item"><a class="nav-link{marks}" '
            f'href="{handler.reverse_url("parked")}">Parked batches</a>'
        )
        return page[:at] + link.encode() + page[at:]

    return render_string
