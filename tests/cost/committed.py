"""The whole committed set: shapes made by hand, and recipes that `tests.cost.search` found."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cost.genes import Recipe
from tests.cost.shapes import SHAPES

FOUND = Path(__file__).parent / "found.json"

ALL = [*SHAPES, *(Recipe.loaded(found).shape(name) for name, found in json.loads(FOUND.read_text()).items())]
