"""Makes the package index of this machine available to the build.

pip's configuration is mounted during the build, and is stored neither in the image nor in the repository.
"""

from __future__ import annotations

import ast
import configparser
import os
import re
import subprocess
import sys
from pathlib import Path

SETTING = re.compile(r"^(?P<section>[\w:-]+)\.(?P<name>[\w-]+)=(?P<value>.*)$")
ENVIRONMENT = ":env:"
LIST_SECONDS_MAX = 30.0


def config_list() -> str:
    """Returns the output of `pip config list`."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIST_SECONDS_MAX, check=False)
    return done.stdout


def configuration(listing: str) -> configparser.RawConfigParser:
    """Returns a pip.conf with the same effect in the build. Environment variables take precedence, as they do in
    pip.
    """
    found = configparser.RawConfigParser()
    found.add_section("global")
    lines = [match for line in listing.splitlines() if (match := SETTING.match(line))]
    for match in sorted(lines, key=lambda match: match["section"] == ENVIRONMENT):
        section = "global" if match["section"] == ENVIRONMENT else match["section"]
        if not found.has_section(section):
            found.add_section(section)
        found.set(section, match["name"], str(ast.literal_eval(match["value"])))
    return found


def mounts(configured: configparser.RawConfigParser, folder: Path) -> list[str]:
    """Returns the volumes for the build: a pip.conf, which is written to `folder`, and the local files and folders
    that it names.
    """
    path = folder / "pip.conf"
    with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "w") as file:
        configured.write(file)
    named = {
        word
        for section in configured.sections()
        for _, value in configured.items(section)
        for word in value.split()
        if word.startswith("/") and Path(word).exists()
    }
    return [f"{path}:/etc/pip.conf:ro", *(f"{word}:{word}:ro" for word in sorted(named))]
