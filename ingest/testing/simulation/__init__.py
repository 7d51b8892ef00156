"""The whole system in one deterministic process: the real pipeline and the real loop, everything else simulated.

    World(Shape.draw(seed)).run()

One seed makes the whole world: how many partitions and readers, which bounds, which faults and when they
strike. `python -m ingest.testing.simulation --seeds 1000` tries many and tells the shortest story of one that
fails.

clock.py     time, and what happens next
shape.py     the world of a seed
faults.py    what may go wrong, how likely, and the dice
kafka.py     logs, the consumer group, the source
redis.py     staged batches, which may vanish
celery.py    queues, workers, chords
sinks.py     what is stored under what identity
reader.py    a reader process that can be killed between two commands
checkers.py  the invariants, one class each
marks.py     the situations that runs must reach
world.py     all of it together
story.py     what happened
shrink.py    tries a seed, and finds the smallest world in which it still fails
"""

from ingest.testing.simulation.shape import Shape
from ingest.testing.simulation.story import Violation
from ingest.testing.simulation.world import World

__all__ = ["Shape", "Violation", "World"]
