"""The complete committed set: handmade shapes, and recipes found by `tests.cost.search`."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cost.genes import Recipe
from tests.cost.shapes import SHAPES

FOUND = Path(__file__).parent / "found.json"

ALL = [*SHAPES, *(Recipe.from_json(found).shape(name) for name, found in json.loads(FOUND.read_text()).items())]
