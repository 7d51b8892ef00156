"""The whole system in one deterministic process, with the real pipeline and loop. Everything else is simulated.

    World(Shape.draw(seed)).run()

One seed determines the whole world: the number of partitions and readers, the limits, the faults and their times.
`python -m ingest.testing.simulation --seeds 1000` tries many seeds and prints the shortest history for each
of the first seeds that fail.

clock.py      time, and scheduled events
shape.py      the world of a seed
faults.py     kinds of faults, their probabilities, and the random streams
kafka.py      logs, the consumer group, the source
redis.py      staged batches, which can be lost
celery.py     queues, workers, chords
sinks.py      stored items by identity
reader.py     a reader process that can be killed between two commands
checkers.py   the invariants, one class for each
marks.py      the situations that the runs must reach
world.py      the whole world
trace.py      the history of a run
shrink.py     tries a seed, and finds the smallest world in which it still fails
"""

from ingest.testing.simulation.shape import Shape
from ingest.testing.simulation.trace import Violation
from ingest.testing.simulation.world import World

__all__ = ["Shape", "Violation", "World"]
