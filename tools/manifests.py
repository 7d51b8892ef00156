"""deploy/kubernetes, rendered from the Helm chart's default values: for those who apply files instead of charts.

The chart in deploy/helm is the source. Each of its templates becomes one file of deploy/kubernetes, which
`kubectl apply -k` takes. Needs the program `helm` (version 3) on the PATH.

    python -m tools.manifests           writes the files
    python -m tools.manifests --check   prints which differ from the chart; exit code 1 if any does
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
CHART = ROOT / "deploy" / "helm" / "replays-ingest"
MANIFESTS = ROOT / "deploy" / "kubernetes"
NAMESPACE = "replays"
HEADER = (
    "# Rendered from deploy/helm/replays-ingest by `python -m tools.manifests`. Change the chart, not this file.\n"
)
SOURCE = re.compile(r"^# Source: replays-ingest/templates/(\S+)$", re.MULTILINE)
# Written by `tools.documents` from deploy/prometheus/alerts.yml, for which nobody needs helm.
ALERTS = "alerts.yaml"
SECONDS_MAX = 60
# The cluster that is assumed; a helm that was built from source would assume a very old one.
KUBERNETES_VERSION = "1.33.0"


class HelmFailed(Exception):
    """helm is not installed, or refused the chart. The text is what it printed."""


def helm(*arguments: str) -> str:
    """What `helm ARGUMENTS` printed. Raises HelmFailed."""
    program = shutil.which("helm")
    if program is None:
        raise HelmFailed("there is no program `helm` on the PATH")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=SECONDS_MAX, check=False)
    if done.returncode != 0:
        raise HelmFailed(done.stdout + done.stderr)
    return done.stdout


def rendered(*options: str) -> str:
    """The chart as `helm template` prints it; `options` are helm's own (`--set a=b`). Raises HelmFailed."""
    place = ("--namespace", NAMESPACE, "--kube-version", KUBERNETES_VERSION)
    return helm("template", "replays-ingest", str(CHART), *place, *options)


def files(text: str) -> dict[str, str]:
    """File name -> content, from what `helm template` printed: the documents of one template stay together."""
    found: dict[str, list[str]] = {}
    for document in re.split(r"^---$", text, flags=re.MULTILINE):
        source = SOURCE.search(document)
        if source is None:
            continue
        body = "\n".join(line.rstrip() for line in SOURCE.sub("", document).strip().splitlines() if line.strip())
        if re.search(r"^kind:", body, re.MULTILINE):
            found.setdefault(source[1], []).append(body)
    return {name: HEADER + "\n---\n".join(bodies) + "\n" for name, bodies in sorted(found.items())}


def stale() -> list[str]:
    """Names of the files that are missing or differ from the chart. Raises HelmFailed."""
    wanted = {name: text for name, text in files(rendered()).items() if name != ALERTS}
    return [
        name
        for name, text in wanted.items()
        if not (MANIFESTS / name).exists() or (MANIFESTS / name).read_text() != text
    ]


def main() -> int:
    """python -m tools.manifests [--check]"""
    parser = argparse.ArgumentParser(description="Render deploy/kubernetes from the Helm chart.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when a file is stale")
    options = parser.parse_args()
    try:
        names = stale()
        text = {} if options.check else files(rendered())
    except HelmFailed as failure:
        print(failure)
        return 1
    for name in names:
        print(f"{'stale' if options.check else 'wrote'} {MANIFESTS.relative_to(ROOT) / name}")
        if not options.check:
            (MANIFESTS / name).write_text(text[name])
    return 1 if names and options.check else 0


if __name__ == "__main__":
    raise SystemExit(main())
