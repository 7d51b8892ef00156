"""Evolves messages that cost as much as possible: `python -m tests.cost.search [--seconds 600] [--seed N]`.

The search evolves three populations of recipes for messages. Each population maximizes one kind of cost, as a
share of the limit for that cost: CPU (multiple of the floor), memory (multiple of the inflated size), or bytes of
rows per segment. The search starts from shapes that once stopped a reader, and from recorded events in which one
part is repeated. The best recipes of each population are measured again at full size in separate processes, and
printed. `--keep` adds the most expensive recipe of each kind to tests/cost/found.json.

The exit code is 1 if a recipe exceeds a limit in docs/cost.md.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from ingest.core.model import Message, Segment, TopicPartition
from ingest.core.parse import parse
from tests.cost.committed import FOUND
from tests.cost.genes import Recipe, mutate_recipe, new_recipe
from tests.cost.measure import (
    CPU_SECONDS_BASE,
    MEMORY_RATIO_MAX,
    RATIO_MAX,
    RULES,
    cpu,
    measure_separately,
    memory,
)

POPULATION = 24
PARENTS_MAX = 8
# The CPU time of a small message is mostly the base cost, so larger messages are bred.
BRED_RAW_BYTES = {"cpu": 6_000_000, "memory": 6_000_000, "rows": 1_500_000}
FULL_RAW_BYTES = 60_000_000
BEST_COUNT = 3
TIMESTAMP_MS = 1_790_000_000_000


@dataclass(frozen=True, slots=True)
class Scored:
    """A recipe and its cost relative to the limit; 1 means exactly at the limit."""

    share: float
    recipe: Recipe


def cpu_share(value: bytes) -> float:
    """Returns the CPU cost as a share of the limit.

    The base allowance is excluded, because it would hide differences between small messages.
    The share may exceed 1.
    """
    floor_seconds, seconds, _ = cpu(value, rounds=1)
    return seconds / max(floor_seconds, 1e-3) / RATIO_MAX


def memory_share(value: bytes) -> float:
    """Returns the memory use as a share of the limit, excluding the base allowance."""
    return memory(value) / BRED_RAW_BYTES["memory"] / MEMORY_RATIO_MAX


def rows_share(value: bytes) -> float:
    """Returns the bytes of rows and metrics as a share of the limit."""
    outcome = parse(Message(TopicPartition("t", 0), 1, 0, value, timestamp_ms=TIMESTAMP_MS), RULES)
    if not isinstance(outcome, Segment):
        return 0.0
    return (outcome.size_bytes - sum(len(blob.content) for blob in outcome.blobs)) / RULES.rows_bytes_max


KINDS: dict[str, Callable[[bytes], float]] = {"cpu": cpu_share, "memory": memory_share, "rows": rows_share}


def breed(
    kind: str, seconds: float, chance: random.Random, say: Callable[[str], None], recipes_max: int = 10**9
) -> tuple[int, list[Scored]]:
    """Returns (number of recipes tried, best recipes, most expensive first)."""
    score = KINDS[kind]
    until, tried = time.monotonic() + seconds, 0
    population: list[Scored] = []
    while time.monotonic() < until and tried < recipes_max:
        if len(population) < POPULATION or chance.random() < 0.1:
            recipe = new_recipe(chance)
        else:
            parents = population[:PARENTS_MAX]
            recipe = mutate_recipe(chance.choice(parents).recipe, chance.choice(population).recipe, chance)
        value = recipe.value(BRED_RAW_BYTES[kind])
        share = score(value)
        if population and share > population[0].share:
            # On a busy machine, only reproducible CPU times count.
            share = min(share, score(value), score(value))
            if share > population[0].share:
                say(f"{kind}: {share:.2f} of the bound after {tried} recipes")
        tried += 1
        population = sorted([*population, Scored(share, recipe)], key=lambda scored: -scored.share)[:POPULATION]
    return tried, population


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0, help="Total time for all kinds, in seconds.")
    parser.add_argument(
        "--seed", type=int, default=None, help="Random seed; by default, the current time. The seed is printed."
    )
    parser.add_argument(
        "--raw-bytes",
        type=int,
        default=FULL_RAW_BYTES,
        help="Inflated size of the messages in the final measurement, in bytes.",
    )
    parser.add_argument(
        "--keep", action="store_true", help="Add the most expensive recipe of each kind to tests/cost/found.json."
    )
    arguments = parser.parse_args()
    seed = int(time.time()) if arguments.seed is None else arguments.seed
    print(f"seed {seed}")
    chance = random.Random(seed)
    beyond, kept = 0, json.loads(FOUND.read_text())
    for kind in KINDS:
        tried, best = breed(kind, arguments.seconds / len(KINDS), chance, _progress)
        for place, scored in enumerate(best[:BEST_COUNT]):
            value = scored.recipe.value(arguments.raw_bytes)
            cost, rows = measure_separately(value), rows_share(value)
            beyond += cost.ratio > RATIO_MAX or cost.memory_ratio > MEMORY_RATIO_MAX or rows > 1.0
            print(
                f"{kind}, {tried} recipes, number {place + 1}: {cost.message_bytes:,} bytes inflate to "
                f"{cost.raw_bytes:,}; "
                f"{cost.ratio:.2f} times the floor beyond {1000 * CPU_SECONDS_BASE:.0f} ms, memory "
                f"{cost.memory_ratio:.2f} times the size beyond 64 MiB, rows {rows:.2f} of their bound",
                flush=True,
            )
        if arguments.keep and best:
            kept[f"found for {kind} with seed {seed}"] = best[0].recipe.to_json()
    if arguments.keep:
        FOUND.write_text(json.dumps(kept, indent=1, ensure_ascii=True) + "\n")
    print(f"{beyond} beyond a bound")
    return 1 if beyond else 0


def _progress(line: str) -> None:
    if sys.stderr.isatty():
        print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
