"""Runs `python -m ingest.local.demo`, which has the same options as `replays-ingest demo`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ingest.local.demo.run import VICTIMS, run
from ingest.local.load.produce import PROFILES


def main() -> int:
    """Runs the demo with the options on the command line, which are those of `replays-ingest demo`."""
    parser = argparse.ArgumentParser(description="Run the whole system on this machine and reconcile the sinks.")
    parser.add_argument("count", nargs="?", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="keep everything running until Ctrl-C")
    parser.add_argument("--directory", type=Path, help="keep data, logs and manifest in this directory")
    parser.add_argument("--profile", choices=sorted(PROFILES), default="demo")
    parser.add_argument("--kill", choices=VICTIMS, help="kill this process with SIGKILL mid-run")
    parser.add_argument("--kafka", choices=("tansu", "apache"), default="tansu")
    parser.add_argument("--layout", choices=("segment", "packed"), default="segment", help="layout of the objects")
    parser.add_argument("--json", action="store_true", dest="as_json")
    return run(**vars(parser.parse_args()))


if __name__ == "__main__":
    raise SystemExit(main())
