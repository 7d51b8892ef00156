"""Makes this machine's package index available to the build: pip's configuration is mounted while the image is
built.

It is stored neither in the image nor in the repository.
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
ASK_SECONDS_MAX = 30.0


def listed() -> str:
    """Output of `pip config list`."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=ASK_SECONDS_MAX, check=False)
    return done.stdout


def configuration(listing: str) -> configparser.RawConfigParser:
    """The pip.conf that has the same effect in the build. Environment variables take precedence, as in pip."""
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
    """Volumes for the build: pip.conf, written into `folder`, and the local files and folders that it names."""
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
