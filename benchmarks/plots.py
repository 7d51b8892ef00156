"""Plots the figures that other benchmarks wrote to .bench/, as SVG and PNG for the documentation.

python -m benchmarks.plots [--figures .bench] [--into docs/performance]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROLES = {"reader": "#4878a8", "worker": "#e07b39", "redis": "#a83c3c", "peer": "#8a8a8a"}


def peers(found: Mapping[str, Any], axes: Any) -> None:
    """Plots the CPU time per segment by system, split by process."""
    results = sorted(found["results"], key=lambda one: one["cpu_micros_per_segment"])
    left = [0.0] * len(results)
    labels = [one["label"] for one in results]
    for role, color in ROLES.items():
        widths = [one["cpu_micros_by_role"].get(role, 0.0) for one in results]
        axes.barh(labels, widths, left=left, color=color, label=role)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_xlabel("CPU µs per segment")
    axes.legend()


def dispatch(found: Mapping[str, Any], axes: Any) -> None:
    """Plots the cost of dispatch by batch size."""
    sizes = [one["size"] for one in found["results"]]
    axes.loglog(sizes, [one["segment_micros"] for one in found["results"]], "o-", label="reader")
    axes.loglog(sizes, [one["redis_micros_per_segment"] for one in found["results"]], "s-", label="Redis")
    axes.set_xlabel("segments per batch")
    axes.set_ylabel("CPU µs per segment")
    axes.legend()


def over_time(found: Mapping[str, Any], axes: Any) -> None:
    """Plots memory use and progress of a long run."""
    series = found["result"]["series"]
    seconds = [one["seconds"] for one in series]
    for name in sorted(name for name in series[0] if name.startswith("rss_")):
        role = name.removeprefix("rss_")
        axes.plot(seconds, [one[name] / 1e6 for one in series], label=f"{role}, MB", color=ROLES.get(role))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds")
    axes.set_ylabel("memory, MB")
    twin = axes.twinx()
    twin.plot(seconds, [one["segments"] for one in series], "--", color="#555555", label="segments")
    twin.set_ylabel("segments committed")
    twin.set_ylim(bottom=0)
    axes.legend(loc="lower right")


PLOTS: dict[str, tuple[Callable[[Mapping[str, Any], Any], None], str]] = {
    "peers": (peers, "The same segments, the same store, the same core"),
    "dispatch": (dispatch, "Dispatch of a batch"),
    "soak": (over_time, "Full load"),
    "backlog": (over_time, "Draining a backlog"),
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--figures", type=Path, default=Path(".bench"))
    parser.add_argument("--into", type=Path, default=Path("docs/performance"))
    arguments = parser.parse_args()
    arguments.into.mkdir(parents=True, exist_ok=True)
    plt.rcParams["svg.hashsalt"] = "plots"  # keeps the SVG file byte-identical if the figures are the same
    for name, (draw, title) in PLOTS.items():
        path = arguments.figures / f"{name}.json"
        if not path.exists():
            continue
        figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
        figure.suptitle(title)
        draw(json.loads(path.read_text()), axes)
        for suffix, metadata in (("svg", {"Date": None}), ("png", {})):
            figure.savefig(arguments.into / f"{name}.{suffix}", dpi=110, metadata=metadata)
        plt.close(figure)
        print(arguments.into / f"{name}.svg")


if __name__ == "__main__":
    main()
