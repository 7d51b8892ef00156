"""Provides the base image: the one named in the Dockerfile or, if no registry is reachable, one built from
Debian's packages.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from tools.image.calls import call
from tools.image.engine import Engine
from tools.image.outcome import Lines, StepNotRun, last_line

DEFAULT_IMAGE_PATTERN = re.compile(r"^ARG PYTHON_IMAGE=(\S+)", re.MULTILINE)
REGISTRY = "docker.io/library/"
SUITE = "bookworm"
# Packages that the Dockerfile and Celery require, and packages that the official Python image installs from
# Debian.
PACKAGES = (
    "passwd",
    "python3-venv",
    "python-is-python3",
    "ca-certificates",
    "libstdc++6",
    "netbase",
    "tzdata",
)
OPTIONS = (
    "--variant=essential",
    '--aptopt=APT::Install-Recommends "false"',
    "--dpkgopt=force-unsafe-io",
    *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "doc", "locale")),
)
BUILD_SECONDS_MAX = 150.0


def wanted(dockerfile: str) -> str:
    """Returns the base image that a Dockerfile names."""
    found = DEFAULT_IMAGE_PATTERN.search(dockerfile)
    if found is None:
        raise ValueError("the Dockerfile has no default for PYTHON_IMAGE")
    return found[1]


def debian_base() -> tuple[str, list[str]]:
    """Returns the name and the recipe of the base image that is built from Debian's packages. The name depends on
    the recipe.
    """
    recipe = ["mmdebstrap", "--quiet", *OPTIONS, f"--include={','.join(PACKAGES)}", SUITE]
    digest = hashlib.sha256("\n".join(recipe).encode()).hexdigest()[:12]
    return f"localhost/replays-ingest-base:{SUITE}-{digest}", recipe


def base(engine: Engine, dockerfile: str, lines: Lines, time_limit_factor: float) -> str:
    """Ensures that the engine has a base image, and returns the name of this image. If the image that the
    Dockerfile names can be neither found nor pulled, a base image is built from Debian's packages.

    Raises StepNotRun.
    """
    image = REGISTRY + wanted(dockerfile)
    if engine.has_image(image):
        return image
    try:
        engine.pull(image)
    except StepNotRun as reason:
        lines.report_unfinished(f"a build on {wanted(dockerfile)}, the base named in the Dockerfile", str(reason))
    else:
        return image
    name, recipe = debian_base()
    if not engine.has_image(name):
        _make(engine, name, recipe, BUILD_SECONDS_MAX * time_limit_factor)
    return name


def _make(engine: Engine, name: str, recipe: list[str], seconds: float) -> None:
    if shutil.which(recipe[0]) is None:
        raise StepNotRun(
            "mmdebstrap, which makes a base image, is not installed (Debian: apt-get install mmdebstrap)"
        )
    with tempfile.TemporaryDirectory(prefix="replays-base-") as folder:
        archive = str(Path(folder) / "base.tar")
        at_most = engine.clock.seconds_for_step(seconds)
        try:
            done = call([*recipe, archive], at_most)
        except subprocess.TimeoutExpired as error:
            raise StepNotRun(f"Debian's packages were not downloaded within {at_most:.0f} s") from error
        if done.returncode != 0:
            raise StepNotRun(f"mmdebstrap: {last_line(done.stderr)}")
        path = "ENV PATH=/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
        imported = engine.call("import", "--quiet", f"--change={path}", archive, name, seconds=seconds)
    if imported.returncode != 0:
        raise StepNotRun(f"podman import: {last_line(imported.stderr)}")
