"""Runs the contract suite on our emulator and on two third-party servers, and prints what differs from the
documentation.

    python -m tools.bigquery_contract [--only NAME] [--json FILE] [--cache DIRECTORY]

The suite needs the package index to create the environments of the third-party servers, which are kept in the
cache. The exit code is 1 if our emulator differs, and 2 if a server cannot be run. `make bigquery-contract` writes
`result.json`, from which `python -m tools.documents` generates docs/bigquery-contract.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ingest.local.servers.processes import LocalError
from tools.bigquery_contract.operations import OPERATIONS
from tools.bigquery_contract.servers import EMULATOR, PACKAGES, running, version_of
from tools.bigquery_contract.target import Target, run_operation

ROOT = Path(__file__).parents[2]
NAMES = (EMULATOR, *(package.name for package in PACKAGES))


def judge(cache: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """Runs the suite on the named servers. Raises LocalError."""
    found: dict[str, dict[str, str]] = {chosen.name: {} for chosen in OPERATIONS}
    with tempfile.TemporaryDirectory() as directory, running(cache, Path(directory), names) as servers:
        for name, server in servers.items():
            for chosen in OPERATIONS:
                found[chosen.name][name] = text = run_operation(
                    Target(server.address, server.storage_address), chosen
                )
                if text:
                    print(f"{name:15} {chosen.name}: {text}", flush=True)
            same = sum(not entry[name] for entry in found.values())
            print(f"{name:15} {same} of {len(found)} operations as documented", flush=True)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "servers": {name: version_of(name) for name in names},
        "operations": found,
    }


def main() -> None:
    """Runs the suite, and exits with 1 if our emulator differs, or with 2 if a server cannot be run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=NAMES, action="append", help="server to run; may be repeated")
    parser.add_argument("--json", type=Path, help="file for the result")
    parser.add_argument(
        "--cache", type=Path, default=ROOT / ".contract", help="directory for the servers' virtual environments"
    )
    arguments = parser.parse_args()
    try:
        found = judge(arguments.cache, tuple(name for name in NAMES if name in (arguments.only or NAMES)))
    except LocalError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    sys.exit(any(entry.get(EMULATOR) for entry in found["operations"].values()))


if __name__ == "__main__":
    main()
