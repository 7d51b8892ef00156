"""Builds the container image, and runs its services in docker-compose.yml with the servers of the embedded stack.

    python -m tools.image [--patience FACTOR]        (make image)

The image is built from the Dockerfile, on the base image that it names or, if no registry is reachable, on a base
image made from Debian's packages. Prints one line per result. The exit code is 1 if the image could not be built
or does not run. If the machine lacks a prerequisite (an engine, a network), the steps that need it are reported as
NOT DONE, with the reason, and do not count as a failure.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from ingest.local.compare.report import ReconcileError
from ingest.local.load.produce import LoadError
from ingest.local.servers.processes import LocalError
from ingest.local.stack import Stack
from tools.image import compose, pip
from tools.image.base import base
from tools.image.engine import Engine
from tools.image.outcome import Clock, ImageDefect, Lines, StepNotRun, last_line
from tools.image.system import FLOWER_PASSWORD, System

ROOT = Path(__file__).parents[2]
IMAGE = "localhost/replays-ingest:local"
BUILD_SECONDS_MAX, PREPARE_SECONDS_MAX, RUN_SECONDS_MAX = 150.0, 240.0, 300.0
# Errors in pip's output if an index does not respond. These errors differ from pip's errors about a missing
# package.
NO_INDEX = ("NewConnectionError", "NameResolutionError", "ConnectTimeoutError", "ReadTimeoutError", "ProxyError")


def build(engine: Engine, lines: Lines, time_limit_factor: float) -> str:
    """Builds the image. Returns its base. Raises StepNotRun, or ImageDefect if the Dockerfile is the cause."""
    began = time.monotonic()
    on = base(engine, (ROOT / "Dockerfile").read_text(), lines, time_limit_factor)
    probe = engine.once(on, ("python", "--version"), seconds=30.0)
    if probe.returncode != 0:
        raise StepNotRun(f"podman cannot run containers on this machine: {last_line(probe.stderr)}")
    before = engine.image(IMAGE).get("Id", "")
    with tempfile.TemporaryDirectory(prefix="replays-pip-") as folder:
        mounts = pip.mounts(pip.configuration(pip.config_list()), Path(folder))
        done = engine.build(ROOT, IMAGE, {"PYTHON_IMAGE": on}, mounts, BUILD_SECONDS_MAX * time_limit_factor)
    if done.returncode != 0:
        printed = done.stdout + done.stderr
        if any(word in printed for word in NO_INDEX):
            raise StepNotRun(f"the package index did not respond: {_error_of(printed)}")
        raise ImageDefect(f"the image cannot be built: {_error_of(printed)}")
    after = engine.image(IMAGE)
    if before and before != after["Id"]:
        engine.remove_image(before)
    lines.report_done(
        f"built on {probe.stdout.strip()} of {on} in {time.monotonic() - began:.0f} s, "
        f"{after['Size'] / 1e6:.0f} MB, user {after['Config'].get('User', 'root')}"
    )
    return on


def _error_of(printed: str) -> str:
    """Returns the first line that starts with ERROR, which is printed by pip; the engine prints its own error
    later.
    """
    for line in printed.splitlines():
        if line.startswith("ERROR"):
            return line
    return last_line(printed)


def run(engine: Engine, lines: Lines, tag: str) -> None:
    """Runs the image against a stack. Raises ImageDefect."""
    variables = {"FLOWER_PASSWORD": FLOWER_PASSWORD}
    path = ROOT / "docker-compose.yml"
    try:
        with Stack() as stack:
            stack.start()
            services = compose.built_services(path, variables)
            System(engine, IMAGE, services, compose.service_names(path, variables), stack, lines).run(tag)
    except (StepNotRun, LocalError, LoadError, ReconcileError) as error:
        raise ImageDefect(str(error)) from error
    images = compose.third_party_images(path, variables)
    reason = "replaced by the embedded stack, in the host's network"
    lines.report_unfinished(
        f"the {len(images)} third-party images of docker-compose.yml, its network and ports", reason
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the container image and run it with the embedded stack.")
    parser.add_argument(
        "--patience", type=float, default=1.0, help="factor by which all time limits are multiplied"
    )
    time_limit_factor = parser.parse_args().patience
    lines = Lines(lambda line: print(line, flush=True))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    tag = f"replays-try-{os.getpid()}"
    began = time.monotonic()
    try:
        engine = Engine(Clock(PREPARE_SECONDS_MAX * time_limit_factor), f"replays-try={tag}")
    except StepNotRun as reason:
        lines.report_unfinished("the image was not tested", str(reason))
        return lines.code
    try:
        build(engine, lines, time_limit_factor)
        engine.clock = Clock(RUN_SECONDS_MAX * time_limit_factor)
        run(engine, lines, tag)
    except StepNotRun as reason:
        lines.report_unfinished("the image was not built or not run", str(reason))
    except ImageDefect as error:
        lines.report_failure(str(error))
    finally:
        engine.close()
    print(f"image: {time.monotonic() - began:.0f} s", flush=True)
    return lines.code


if __name__ == "__main__":
    raise SystemExit(main())
