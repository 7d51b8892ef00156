"""Breaks the system at random, from a seed, and then proves that nothing was lost.

    python -m tools.chaos --minutes 10 --seed 1        (make chaos)

The embedded stack, two readers in one group, two flush workers and Flower run as processes of their own under a
steady load. Two hands break things at the same time, each from its own pack of faults, shuffled by the seed: one
hits processes (kill -9, also amid a rebalance, SIGSTOP, a reader more or less, Redis and the broker; partitions
are added), the other makes sinks sick through
fault proxies. When the time is over all faults stop, every message has to become committed, the readers have to
end in an orderly way, and every sink is compared with the manifest of the load, object for object and row for row.

Which faults come in which order depends on the seed alone; what they meet depends on the machine as well.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ingest.settings import GroupProtocol
from tools.chaos.run import MESSAGES_PER_SECOND, run


def main() -> int:
    """python -m tools.chaos [--minutes 10] [--kafka apache] [--redis sentinel] [--group-protocol consumer]"""
    parser = argparse.ArgumentParser(description="Kills real processes at random, then reconciles every sink.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kafka", choices=("tansu", "apache"), help="default: apache where Java is")
    parser.add_argument("--redis", choices=("single", "sentinel"), default="single", help="behind Sentinel?")
    parser.add_argument(
        "--group-protocol",
        type=GroupProtocol,
        choices=tuple(GroupProtocol),
        default=GroupProtocol.CLASSIC,
        help="of the readers; consumer (KIP-848) needs Apache Kafka",
    )
    parser.add_argument("--rate", type=float, default=MESSAGES_PER_SECOND, help="messages a second")
    parser.add_argument("--directory", type=Path, help="keep data and logs there")
    parser.add_argument("--layout", choices=("segment", "packed"), default="segment", help="of the objects")
    parser.add_argument("--json", action="store_true", dest="as_json")
    return run(**vars(parser.parse_args()))


if __name__ == "__main__":
    raise SystemExit(main())
