"""The search for costly messages mutates recipes, reports the costliest, and is reproducible."""

from __future__ import annotations

import random

from ingest.core.model import Segment
from tests.cost.genes import STOPPED_A_READER, Recipe, mutate_recipe, new_recipe
from tests.cost.search import KINDS, breed
from tests.kit.parsing import parsed


def test_a_recipe_survives_a_round_trip() -> None:
    """A recipe with arbitrary bytes is unchanged after it is stored and loaded."""
    chance = random.Random(1)
    for _ in range(200):
        recipe = mutate_recipe(new_recipe(chance), new_recipe(chance), chance)
        assert Recipe.from_json(recipe.to_json()) == recipe
        assert recipe.value(20_000) == Recipe.from_json(recipe.to_json()).value(20_000)


def test_the_same_seed_breeds_the_same_messages() -> None:
    """Two searches with the same seed breed the same messages."""

    def children(seed: int) -> list[Recipe]:
        chance = random.Random(seed)
        return [mutate_recipe(new_recipe(chance), new_recipe(chance), chance) for _ in range(50)]

    assert children(7) == children(7)
    assert children(7) != children(8)


def test_initial_recipes_are_accepted_by_the_parser() -> None:
    """The parser accepts the initial recipes; a message that is rejected at once costs nothing and would be a
    useless starting point.
    """
    for recipe in STOPPED_A_READER:
        assert isinstance(parsed(recipe.value(50_000)), Segment)


def test_breeding_makes_messages_more_expensive() -> None:
    """After some generations, the best child costs more than every initial recipe.

    Here the cost is a number of rows, not elapsed time.
    """
    chance = random.Random(3)
    first = max(KINDS["rows"](new_recipe(chance).value(1_500_000)) for _ in range(10))

    tried, best = breed("rows", recipes_max=150, seconds=600.0, chance=random.Random(3), say=lambda line: None)

    assert tried == 150
    assert best[0].share > first
