"""Runs SPIN to check every interleaving of the specification's actions, and to check histories against the
specification.

Requires `spin` (Debian package `spin`) and gcc.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.spec.history import READERS_MAX, SLOTS, History

SPECIFICATION = Path(__file__).parents[2] / "spec" / "commit_protocol.pml"
SIZES = (64, 256, 1024)  # maximum number of offsets in a history; one checker is compiled for each size
DEPTH_MAX = 1_000_000
STATE_BYTES_MAX = 524_288
RUN_SECONDS_MAX = 600.0


class SpinFailed(Exception):
    """Raised if a tool is missing, or refuses the specification."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Result of an exhaustive search. `error`: SPIN's output for the first failed check, or ""."""

    states: int
    transitions: int
    seconds: float
    error: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Verdict on one history. `refused`: index of the first action that is not allowed; None if all are
    allowed.
    """

    actions: int
    refused: int | None
    error: str = ""

    @property
    def ok(self) -> bool:
        return self.refused is None


def missing() -> str:
    """Describes missing programs. The result is empty if all are installed."""
    absent = [name for name in ("spin", "gcc") if shutil.which(name) is None]
    return f"not installed: {', '.join(absent)} (apt-get install spin gcc)" if absent else ""


def search(
    directory: Path, *, faults: int | None = None, ends: bool = False, text: str | None = None
) -> SearchResult:
    """Explores every interleaving of the specification's actions. With `ends`, the search also checks that every
    interleaving terminates.

    `faults`: maximum number of faults, by default that of the specification. `text`: replaces the text of the
    file. Raises SpinFailed.
    """
    source = SPECIFICATION.read_text() if text is None else text
    if faults is not None:
        source = re.sub(r"^#define FAULTS \d+$", f"#define FAULTS {faults}", source, flags=re.MULTILINE)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "searched.pml").write_text(source)
    _run(directory, ["spin", "-a", "searched.pml"])
    # Compiling with optimization takes longer than a search with at most one fault. Without -DSAFETY, SPIN also
    # searches for cycles.
    optimized = "-O2" if faults is None or faults > 1 else "-O0"
    _compile(directory, "search", [optimized, "-DNP" if ends else "-DSAFETY"])
    printed = _run(directory, ["./search", f"-m{DEPTH_MAX}", "-w26", *(["-l"] if ends else [])])
    errors = re.findall(r"^pan:\d+: .*$", printed, flags=re.MULTILINE)
    if not errors and "errors: 0" not in printed:
        raise SpinFailed(f"the search did not end:\n{printed[-2000:]}")
    return SearchResult(
        states=int(_number(r"(\d+(?:\.\d+e\+\d+)?) states, stored", printed)),
        transitions=int(_number(r"(\d+(?:\.\d+e\+\d+)?) transitions", printed)),
        seconds=_number(r"elapsed time ([\d.]+)", printed),
        error="\n".join(errors),
    )


class Checker:
    """Checks histories against the specification. Compiles a checker once per history size and directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def check(self, history: History) -> Verdict:
        """Checks one history. Raises SpinFailed if SPIN fails, or if the history has too many offsets."""
        needed = len(history.ranks)
        stop = next((size for size in SIZES if size >= needed), None)
        if stop is None:
            raise SpinFailed(f"the history has {needed} offsets, more than the maximum of {SIZES[-1]}")
        program = self._program(stop)
        lines = program.parent / "history.txt"
        lines.write_text("\n".join(history.lines(stop)) + "\n")
        printed = _run(program.parent, [f"./{program.name}", "-E", f"-m{DEPTH_MAX}", "-w18"], HISTORY=str(lines))
        if "\naccepted\n" in printed:
            return Verdict(len(history.actions), None)
        furthest = int(([0] + [int(at) for at in re.findall(r"^got to (\d+)$", printed, re.MULTILINE)])[-1])
        errors = [line for line in printed.splitlines() if "assertion violated" in line]
        return Verdict(len(history.actions), furthest, "\n".join(errors))

    def _program(self, stop: int) -> Path:
        where = self._directory / f"replay-{stop}"
        program = where / "replay"
        if not program.exists():
            where.mkdir(parents=True, exist_ok=True)
            for name in ("commit_protocol.pml", "replay.pml"):
                shutil.copyfile(SPECIFICATION.with_name(name), where / name)
            sizes = [f"-DSTOP={stop}", f"-DREADERS={READERS_MAX}", f"-DSLOTS={SLOTS}"]
            _run(where, ["spin", "-DREPLAYED", *sizes, "-a", "replay.pml"])
            _compile(where, program.name, ["-O0", "-DSAFETY", f"-DVECTORSZ={STATE_BYTES_MAX}"])
        return program


def _compile(directory: Path, program: str, options: Sequence[str]) -> None:
    _run(directory, ["gcc", "-w", *options, "-o", program, "pan.c"])


def _run(directory: Path, command: Sequence[str], **environment: str) -> str:
    """Runs a program and returns its output. Raises SpinFailed if the program cannot be run or fails."""
    try:
        done = subprocess.run(
            command,
            cwd=directory,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS_MAX,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SpinFailed(f"{command[0]}: {error}") from error
    printed = done.stdout + done.stderr
    if done.returncode != 0 and not command[0].startswith("./"):
        raise SpinFailed(f"{' '.join(command)} ended with code {done.returncode}\n{printed[-2000:]}")
    return printed


def _number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    if found is None:
        raise SpinFailed(f"SPIN printed no figures:\n{text[-2000:]}")
    return float(found[1])
