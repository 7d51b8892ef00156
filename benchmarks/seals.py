"""Measures the cost of the shared key: milliseconds of CPU per staged MiB, and per sealed entry.

    python -m benchmarks.seals

A payload is hashed twice, by the reader that stages it and by the worker that writes it. A batch of the default
size has about six sealed entries plus one per flush task.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from tasks.seals import Purpose, Seals
from tasks.units import MiB

ROUNDS = 200
ENTRY_BYTES = 600


def cpu_ms(call: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Returns the minimum CPU time of a call, in milliseconds."""
    best = float("inf")
    for _ in range(rounds):
        began = time.process_time_ns()
        call()
        best = min(best, (time.process_time_ns() - began) / 1e6)
    return best


def main() -> None:
    """Prints the cost per MiB and per entry, and the cost of a batch of 8 MiB in 12 tasks."""
    seals, payload, entry = Seals((os.urandom(32),)), os.urandom(MiB), os.urandom(ENTRY_BYTES)
    per_mib = cpu_ms(lambda: seals.content(payload))
    per_entry = cpu_ms(lambda: seals.seal(Purpose.MARK, entry), ROUNDS * 10)
    print(f"digest of a payload     {per_mib:.3f} ms of CPU per MiB, once in the reader and once in a worker")
    print(f"seal of an entry        {per_entry:.4f} ms of CPU")
    print(f"a batch of 8 MiB        {2 * 8 * per_mib + 2 * 18 * per_entry:.1f} ms of CPU in all")


if __name__ == "__main__":
    main()
