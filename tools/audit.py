"""Checks every pinned package for known vulnerabilities, if the vulnerability data can be reached.

    python -m tools.audit [--requirements constraints.txt] [--ignore-vuln ID]...

Runs pip-audit against OSV (https://osv.dev). Names and versions are sent to OSV; nothing is installed. The exit
code is 1 if a pinned version has a known vulnerability. The exit code is 0 if no version has a known
vulnerability, or if OSV cannot be reached, because `make check` must pass without a network; the output then says
that the packages were not checked.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

AUDIT_SECONDS_MAX = 90.0
REQUEST_SECONDS_MAX = 10
OSV_URL = "https://api.osv.dev/v1/query"


class NotChecked(Exception):
    """The vulnerability data is not available. The message states the reason."""


def audit(requirements: Path, osv_url: str, ignored: list[str], seconds_max: float) -> list[dict[str, Any]]:
    """Returns pip-audit's result for each package: `name`, `version`, and `vulns` or `skip_reason`. Raises
    NotChecked.
    """
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(requirements), "--no-deps", "--disable-pip"]
    command += ["--vulnerability-service", "osv", "--osv-url", osv_url, "--timeout", str(REQUEST_SECONDS_MAX)]
    command += ["--format", "json", "--progress-spinner", "off"]
    for identity in ignored:
        command += ["--ignore-vuln", identity]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds_max, check=False)
    except subprocess.TimeoutExpired as error:
        raise NotChecked(f"no response within {seconds_max:g} s") from error
    try:
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError) as error:
        lines = done.stderr.strip().splitlines() or ["pip-audit printed nothing"]
        raise NotChecked(lines[-1]) from error
    return found


def report(found: list[dict[str, Any]]) -> int:
    """Prints vulnerable packages and their fixes. Returns the exit code."""
    vulnerable = [package for package in found if package.get("vulns")]
    skipped = [package["name"] for package in found if "skip_reason" in package]
    for package in vulnerable:
        for known in package["vulns"]:
            names = ", ".join([known["id"], *known.get("aliases", [])])
            fixed = (
                f"fixed in {', '.join(known['fix_versions'])}" if known.get("fix_versions") else "not fixed yet"
            )
            print(f"{package['name']} {package['version']}: {names}, {fixed}: {known.get('description', '')}")
    if skipped:
        print(f"not checked for known vulnerabilities: {', '.join(skipped)}")
    print(f"{len(found) - len(skipped)} pinned packages checked, {len(vulnerable)} with known vulnerabilities")
    return 1 if vulnerable else 0


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--requirements", type=Path, default=Path("constraints.txt"), help="file of pins, name==version"
    )
    parser.add_argument(
        "--ignore-vuln", action="append", default=[], metavar="ID", help="accept this known vulnerability"
    )
    parser.add_argument("--osv-url", default=OSV_URL)
    parser.add_argument(
        "--seconds",
        type=float,
        default=AUDIT_SECONDS_MAX,
        help="time limit of the audit, seconds; after that, the packages count as not checked",
    )
    arguments = parser.parse_args()
    try:
        found = audit(arguments.requirements, arguments.osv_url, arguments.ignore_vuln, arguments.seconds)
    except NotChecked as reason:
        print(f"pinned packages were NOT checked for known vulnerabilities: {reason}")
        return
    sys.exit(report(found))


if __name__ == "__main__":
    main()
