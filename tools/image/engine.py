"""Manages images and containers through Podman, with a time limit on every call."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.image.calls import call
from tools.image.outcome import Clock, ImageDefect, StepNotRun, last_line

CALL_SECONDS_MAX = 30.0
PULL_SECONDS_MAX = 60.0
# Podman's defaults may exceed the limits of an unprivileged CI machine.
FILES_MAX, PROCESSES_MAX = 1_048_576, 4096


def limits() -> list[str]:
    """Returns options that limit open files and processes to at most the limits of this process."""
    found = []
    for name, kind, most in (
        ("nofile", resource.RLIMIT_NOFILE, FILES_MAX),
        ("nproc", resource.RLIMIT_NPROC, PROCESSES_MAX),
    ):
        _, hard = resource.getrlimit(kind)
        value = most if hard == resource.RLIM_INFINITY else min(hard, most)
        found.append(f"--ulimit={name}={value}:{value}")
    return found


class Engine:
    """Podman. All containers have the same label, by which `close` finds and removes them."""

    def __init__(self, clock: Clock, label: str) -> None:
        program = shutil.which("podman")
        if program is None:
            raise StepNotRun("podman is not installed (Debian: apt-get install podman runc mmdebstrap)")
        # Unlike runc, crun refuses to run on machines that use both cgroup v1 and cgroup v2.
        self._command = [program, *(["--runtime=runc"] if shutil.which("runc") else [])]
        self._label = label
        self.clock = clock

    def call(self, *arguments: str, seconds: float = CALL_SECONDS_MAX) -> subprocess.CompletedProcess[str]:
        """Runs `podman ARGUMENTS` and accepts any exit code. Raises StepNotRun on timeout."""
        at_most = self.clock.seconds_for_step(seconds)
        try:
            return call([*self._command, *arguments], at_most)
        except subprocess.TimeoutExpired as error:
            raise StepNotRun(f"podman {arguments[0]} took more than {at_most:.0f} s") from error

    # Images

    def has_image(self, image: str) -> bool:
        return self.call("image", "exists", image).returncode == 0

    def pull(self, image: str) -> None:
        """Pulls an image. Raises StepNotRun with the registry's response."""
        done = self.call("pull", "--quiet", image, seconds=PULL_SECONDS_MAX)
        if done.returncode != 0:
            raise StepNotRun(last_line(done.stderr))

    def image(self, image: str) -> dict[str, Any]:
        """Returns the configuration of an image."""
        done = self.call("image", "inspect", image)
        found: list[dict[str, Any]] = json.loads(done.stdout) if done.returncode == 0 else [{}]
        return found[0]

    def remove_image(self, identity: str) -> None:
        """Removes an image, unless it is in use."""
        self.call("rmi", identity)

    def build(
        self, folder: Path, image: str, arguments: Mapping[str, str], mounts: Sequence[str], seconds: float
    ) -> subprocess.CompletedProcess[str]:
        """Runs `podman build` on the host network. `mounts` exist only during the build, and are not part of the
        image."""
        options = [f"--build-arg={name}={value}" for name, value in arguments.items()]
        options += [f"--volume={mount}" for mount in mounts]
        # Build steps run in a chroot, so that they need no more privileges than the containers of this module.
        place = ("--isolation=chroot", "--network=host", "--tag", image)
        return self.call("build", *place, *limits(), *options, str(folder), seconds=seconds)

    # Containers

    def once(
        self, image: str, command: Sequence[str], options: Sequence[str] = (), *, seconds: float
    ) -> subprocess.CompletedProcess[str]:
        """Runs a container to completion and removes it."""
        return self.call("run", "--rm", *self._options(), *options, image, *command, seconds=seconds)

    def start(self, name: str, image: str, command: Sequence[str], options: Sequence[str]) -> None:
        """Starts a container. Raises ImageDefect."""
        done = self.call("run", "--detach", "--name", name, *self._options(), *options, image, *command)
        if done.returncode != 0:
            raise ImageDefect(f"{name} does not start: {last_line(done.stderr)}")

    def execute(self, name: str, command: Sequence[str]) -> bool:
        """Returns True if the command exits with 0 in the container."""
        return self.call("exec", name, *command).returncode == 0

    def state(self, name: str) -> dict[str, Any]:
        """Returns the state of a container: `Running`, `Pid`, `ExitCode` and more."""
        done = self.call("inspect", "--type=container", "--format={{json .State}}", name)
        if done.returncode != 0:
            raise ImageDefect(f"{name} does not exist: {last_line(done.stderr)}")
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def stop(self, name: str, seconds: int) -> int:
        """Stops a container with SIGTERM, and with SIGKILL after `seconds`. Returns the exit code."""
        self.call("stop", f"--time={seconds}", name, seconds=seconds + CALL_SECONDS_MAX)
        return int(self.state(name)["ExitCode"])

    def log_tail(self, name: str, lines: int = 15) -> str:
        """Returns the last lines that a container printed."""
        done = self.call("logs", f"--tail={lines}", name)
        return done.stdout + done.stderr

    def close(self) -> None:
        """Removes all containers, even after the time limit has passed."""
        self.clock = Clock(CALL_SECONDS_MAX)
        found = self.call("ps", "--all", "--quiet", f"--filter=label={self._label}").stdout.split()
        if found:
            self.call("rm", "--force", "--volumes", "--time=2", *found)

    def _options(self) -> list[str]:
        return ["--network=host", f"--label={self._label}", "--pull=never", *limits()]
