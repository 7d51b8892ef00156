"""Injects seeded random faults, and then checks that nothing was lost.

    python -m tools.chaos --minutes 10 --seed 1        (make chaos)

The embedded stack, two readers in one group, two flush workers and Flower run as separate processes under a steady
load. Two threads inject faults concurrently, each from its own list, shuffled by the seed. One thread injects
process faults (kill -9, also during a rebalance; SIGSTOP; added and removed readers; faults of Redis and the
broker) and adds partitions. The other thread injects sink faults through fault proxies. When the time is up, all
faults stop. Every message must then be committed, and the readers must stop gracefully. Finally, every sink is
compared with the load's manifest, object by object and row by row.

The order of faults depends only on the seed; their effects also depend on the machine.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ingest.settings import GroupProtocol
from tools.chaos.run import MESSAGES_PER_SECOND, run


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Inject random faults into real processes, then reconcile every sink."
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kafka", choices=("tansu", "apache"), help="default: apache if Java is installed")
    parser.add_argument(
        "--redis", choices=("single", "sentinel"), default="single", help="single server or Sentinel"
    )
    parser.add_argument(
        "--group-protocol",
        type=GroupProtocol,
        choices=tuple(GroupProtocol),
        default=GroupProtocol.CLASSIC,
        help="group protocol of the readers; the consumer protocol (KIP-848) requires Apache Kafka",
    )
    parser.add_argument("--rate", type=float, default=MESSAGES_PER_SECOND, help="messages per second")
    parser.add_argument("--directory", type=Path, help="keep data and logs in this directory")
    parser.add_argument("--layout", choices=("segment", "packed"), default="segment", help="layout of the objects")
    parser.add_argument(
        "--bigquery-write",
        choices=("insert_all", "storage"),
        default="insert_all",
        help="API for BigQuery rows; storage adds faults in its gRPC connections",
    )
    parser.add_argument("--json", action="store_true", dest="as_json")
    return run(**vars(parser.parse_args()))


if __name__ == "__main__":
    raise SystemExit(main())
