"""Every command in the docs exists as written; commands that change nothing are run and must succeed.

A command is the content of a fenced or indented block, or of backquotes within a sentence. Placeholders (`<id>`,
`REPLAY_ID`, `N`) are replaced by values from a running system. Each command is listed in RUN or NOT_RUN. A
command that is in neither table fails the test, so that its author has to add it to one of them. A command name
without its required argument (`dlq show`) is a mention: only its existence is checked.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from celery.bin.base import CLIContext
from celery.bin.celery import celery
from click.testing import CliRunner

from ingest.cli.main import main
from ingest.local.servers.fault_proxy import Errors
from ingest.testing.messages import recording
from tasks.celery import app
from tests.kit.paths import ROOT
from tests.kit.prestarted import PARENTS
from tests.kit.whole_system import System, until

PAGES = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md")] + [
    page
    for page in sorted((ROOT / "docs").rglob("*.md"))
    if page.name != "commands.md"  # generated from the command line itself
]
PROGRAMS = ("replays-ingest", "celery", "python", "make")
PARKED_AT_LEAST = 3
COMMAND_SECONDS_MAX = 90
PROJECT = "11"

# The commands are listed in execution order, so that commands that change the system run last. Each value contains
# arguments that make an endless or long-running command end early, or that keep a command away from the
# developer's files.
RUN: dict[str, str] = {
    "replays-ingest check": "",
    "replays-ingest status": "",
    "replays-ingest top": "--once",
    "replays-ingest migrate": "",
    "replays-ingest inspect": "",
    "replays-ingest replays ls": "",
    "replays-ingest replays find": "",
    "replays-ingest replays show": "",
    "replays-ingest events": "",
    "replays-ingest fetch": "",
    "replays-ingest dlq ls": "",
    "replays-ingest dlq show": "",
    "replays-ingest dlq replay": "--dry-run",
    "replays-ingest dlq replay --unverified": "--all --dry-run",
    "replays-ingest erase": "--dry-run",
    "replays-ingest reconcile": "",
    "replays-ingest shadow": "",
    "replays-ingest backfill": "--dry-run",
    "replays-ingest batches ls": "",
    "replays-ingest audit": "",
    "replays-ingest batches show": "",
    "replays-ingest batches retry": "",
    "replays-ingest batches abandon": "--yes",
    "celery -A tasks inspect": "",
    "replays-ingest load": "--count 20",
    "replays-ingest local up": "--directory stack",
    "replays-ingest local logs": "--directory stack",
    "replays-ingest local down": "--directory stack",
    "replays-ingest tenants limit": "",
    "replays-ingest tenants kill": "--yes",
}
NOT_RUN = {
    "replays-ingest local up --all": "tests/integration/local/test_programs.py runs it",
    "replays-ingest try": "test_try.py runs it",
    "replays-ingest local logs reader --follow": "it ends with Ctrl-C",
    "replays-ingest": "the reader: the other commands are run against it",
    "celery -A tasks worker": "the fleet: the other commands are run against it",
    "replays-ingest demo": "test_demo.py runs it",
    "replays-ingest flower": "tests/integration/tasks/test_fleet_flower.py runs it",
    "replays-ingest web": "test_web.py runs it",
    "make demo": "test_demo.py runs what it runs",
    "make test": "it would run this test",
    "make check": "a change does not land without it",
    "make docs": "it writes into the checkout; make check looks whether it would",
    "make setup": "there would be no Python to run this with",
    "make bench": "test_benchmarks.py runs what it runs, for minutes less",
    "make bench-peers": "test_benchmarks.py runs what it runs, for minutes less",
    "make bench-uploads": "minutes; test_sick_sinks.py has uploads that fail",
    "make spec": "minutes; tests/unit/tools/spec runs what it runs, with fewer worlds",
    "make simulate": "minutes; tests/simulation runs it with fewer seeds",
    "make explore": "minutes; tests/unit/tools/explore explores smaller worlds",
    "make coverage": "minutes; test_coverage_floors.py tests its sums",
    "make cost-search": "minutes; test_search.py runs it for a second",
    "make mutants": "minutes; tests/mutation checks that its table names existing tests",
    "make chaos": "minutes; test_chaos.py runs it for less",
    "make mixed-versions": "minutes; test_mixed_versions.py runs it for less",
    "make gameday": "almost an hour; test_gameday.py plays some of its faults",
    "make bigquery-contract": "it queries a package index; test_bigquery_contract.py runs the part for our server",
    "make bigquery-kills": "minutes; test_storage_write.py loses requests, responses and writers at each point",
    "make screenshots": "minutes; it writes pictures into the checkout",
    "make live-sdks": "it downloads SDKs; test_try.py runs what it runs with the shipped one",
    "make image": "minutes; .ci/run runs it",
    "make hashes": "it queries a package index; tests/security/test_supply_chain.py checks its files",
    "python -m tools.gameday.run": "minutes; test_gameday.py plays some of its faults",
    "python -m tools.gameday.page": "it reads the record of a game day; tests/unit/tools/gameday has one",
    "python -m tools.documents": "it writes into the checkout; make check looks whether it would",
    "python -m tools.manifests": "it writes into the checkout; tests/unit/deploy/test_chart.py checks its output",
    "python -m tools.pictures.trial": "test_try.py runs what it runs",
    "python -m tools.language_sample": "tests/unit/tools/test_language_sample.py runs it on a small repository",
    "python -m tools.imports": "tests/unit/test_imports.py tests the same functions",
    "celery -A tasks flower": "tests/integration/tasks/test_fleet_flower.py runs it",
    "python -m tools.audit": "it queries a public server; tests/unit/tools/test_audit.py starts its own",
    "python -m benchmarks.bigquery_write": "minutes; test_storage_write.py writes with the same API",
    "python -m benchmarks.dispatch": "minutes; test_benchmarks.py asks it for help",
    "python -m benchmarks.end_to_end": "minutes; test_benchmarks.py runs it with fewer segments",
    "python -m benchmarks.outage": "minutes; tests/unit/benchmarks/test_outage_figures.py has its figures",
    "python -m benchmarks.parse": "minutes; test_benchmarks.py asks it for help",
    "python -m benchmarks.idle": "a minute; test_benchmarks.py asks it for help",
    "python -m benchmarks.scale_out": "minutes; tests/unit/benchmarks/test_scale_out_model.py has its figures",
    "python -m benchmarks.slow_sinks": "minutes; tests/unit/benchmarks/test_slow_sinks_model.py has its figures",
    "python -m benchmarks.rebalance": "minutes; tests/unit/benchmarks/test_rebalance_figures.py has its figures",
    "python -m benchmarks.scale_readers": "minutes; tests/unit/benchmarks/test_scale_figures.py has its figures",
    "python -m benchmarks.seals": "tests/unit/benchmarks/test_seal_cost.py runs it",
    "python -m benchmarks.uploads": "minutes; test_benchmarks.py asks it for help",
    "python -m tests.cost.running": "minutes; tests/e2e/test_hostile_tenant.py runs it with smaller shapes",
    "python -m tests.cost": "minutes; tests/cost/test_cost.py runs the same shapes with smaller recordings",
    "python -m benchmarks.soak": "minutes; test_benchmarks.py asks it for help",
}
# These commands start processes or publish tasks, and need an environment that this process does not have.
OWN_PROCESS = ("replays-ingest local", "replays-ingest batches", "celery")


@dataclass(frozen=True, slots=True)
class Documented:
    """A command as written on a page of the documentation, without its trailing comment, and the page's path."""

    text: str
    page: str

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(shlex.split(self.text))

    @property
    def group(self) -> str:
        """Returns the command's entry in RUN or NOT_RUN: the longest matching prefix, or the command itself."""
        words = self.words
        found = [
            name
            for name in (*RUN, *NOT_RUN)
            if words[: len(name.split())] == tuple(name.split()) and name != "replays-ingest"
        ]
        if not found and words == ("replays-ingest",):
            return "replays-ingest"
        return max(found, key=len, default=self.text)


def documented_commands() -> list[Documented]:
    """Returns every command on the pages once, ordered by RUN and then by page."""
    found: dict[str, Documented] = {}
    for page in PAGES:
        # A record of a past run contains ids that no longer exist; users are not expected to run its commands.
        for text in commands_of(page.read_text().partition("<!-- the run: begin -->")[0]):
            found.setdefault(text, Documented(text, str(page.relative_to(ROOT))))
    order = list(RUN)
    return sorted(found.values(), key=lambda entry: order.index(entry.group) if entry.group in RUN else len(order))


def commands_of(page: str) -> Iterator[str]:
    """Returns the commands in one Markdown page."""
    prose, block = [], False
    for line in page.splitlines():
        if line.startswith("```"):
            block = not block
        elif block or line.startswith("    "):
            yield from commands_of_line(line)
        else:
            prose.append(line)
    for span in re.findall(r"`([^`]+)`", "\n".join(prose)):
        text = " ".join(span.split())
        # "`dlq ls`" in a sentence also refers to the command.
        short = len(text.split()) > 1 and text.split()[0] in main.commands
        yield from commands_of_line(f"replays-ingest {text}" if short else text)


def commands_of_line(line: str) -> Iterator[str]:
    """Returns our commands in a shell line: `a && b` contains two commands, and `eval "$(c)"` contains one."""
    line = re.sub(r'^eval "\$\((.*)\)"$', r"\1", line.strip())
    for part in re.sub(r"(^|\s)#.*$", "", line).split("&&"):
        text = part.strip().removeprefix(".venv/bin/")
        # The shell must see a placeholder of several words as one word.
        text = re.sub(r"<[^<>]*>", lambda found: found[0].replace(" ", "-"), text)
        if text.split(" ")[0] in PROGRAMS:
            yield text


SELECTING = ("replays-ingest backfill", "replays-ingest dlq replay")


def is_mention(entry: Documented) -> bool:
    """Returns whether the text only names a command: the text lacks an argument that the command requires, or an
    option that selects what the command acts on.
    """
    if entry.words[0] != "replays-ingest" or entry.text != entry.group:
        return False
    if entry.group in SELECTING:
        return True
    command: click.Command = main
    for word in entry.words[1:]:
        command = command.commands[word] if isinstance(command, click.Group) else command
    return any(parameter.required for parameter in command.params)


DOCUMENTED = documented_commands()
TO_RUN = [entry for entry in DOCUMENTED if entry.group in RUN and not is_mention(entry)]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system that has ingested a load, with some parked batches that are not retried automatically.

    BigQuery stays unavailable to the workers, because the first successful retry would release the other batches.
    Commands, however, can reach BigQuery.
    """
    patience = {"retry_backoff_seconds": "600", "retry_backoff_seconds_max": "600"}
    park_at_once = {"task_retries_max": "0", "breaker_failures_min": "10000"}
    # Long timeouts: otherwise, a slow sink call on a busy machine would park a batch, which would stay parked.
    patience |= {"sink_timeout_seconds": "20", "flush_deadline_seconds": "120", "task_visibility_seconds": "300"}
    with System(tmp_path_factory.mktemp("documented"), **patience, **park_at_once) as running:
        running.load(60, seed=1)
        running.wait_until_committed()
        running.proxies["bigquery"].set(Errors(404))
        running.load(40, seed=2)
        until(lambda: len(running.json("batches", "ls")) >= PARKED_AT_LEAST, 90, "batches to be parked")
        yield running


@pytest.fixture(scope="module")
def placeholder_values(system: System, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Returns values for placeholders: ids by command group or kind, and a path for `FILE`.

    Ids in a list are used in order.
    """
    message = tmp_path_factory.mktemp("message") / "message.bin"
    message.write_bytes(recording(replay_id="0ddba110000000000000000000000001", segment_id=0))
    parked = sorted(system.json("batches", "ls"))
    letter = system.json("dlq", "ls", "--limit", "1")
    replay = system.json("replays", "ls", "--limit", "1", "--project", PROJECT)
    return {
        "batches": parked,
        "dlq": [str(found(letter, "id"))],
        "replay": [str(found(replay, "replay_id"))],
        "FILE": [str(message)],
    }


def found(answer: object, key: str) -> object:
    """Returns the first value of the given key anywhere in a JSON response."""
    waiting = [answer]
    while waiting:
        entry = waiting.pop(0)
        if isinstance(entry, dict):
            if key in entry:
                return entry[key]
            waiting += entry.values()
        elif isinstance(entry, list):
            waiting += entry
    raise AssertionError(f"no {key} in {json.dumps(answer)[:500]}")


def fill_placeholders(words: tuple[str, ...], ids: dict[str, list[str]]) -> list[str]:
    """Returns the words of the command with their placeholders replaced.

    Each command that changes a parked batch gets a different batch.
    """
    plain = {
        "<project>": PROJECT,
        "N": "5",
        "<you>": "me",
        "<user-or-e-mail>": "me",
        "<reason>": "schema",
        "<sink>": "bigquery",
    }
    result = []
    for word in words:
        if word == "<id>" and "batches" in words:
            used_up = "show" not in words and len(ids["batches"]) > 1
            word = ids["batches"].pop(0) if used_up else ids["batches"][0]
        elif word == "<id>":
            word = ids["dlq"][0]
        elif word in ("REPLAY_ID", "<replay-id>"):
            word = ids["replay"][0]
        elif word == "FILE":
            word = ids["FILE"][0]
        result.append(plain.get(word, word))
    return result


def test_every_documented_command_is_run_or_has_a_reason():
    """Every documented command is listed in RUN or NOT_RUN, so that a new command is not forgotten."""
    groups = {entry: entry.group for entry in DOCUMENTED}
    undecided = [f"{entry.page}: {entry.text}" for entry, group in groups.items() if group not in {*RUN, *NOT_RUN}]
    gone = [name for name in (*RUN, *NOT_RUN) if name not in groups.values()]

    assert not undecided, f"put these into RUN or, with the reason, into NOT_RUN: {undecided}"
    assert not gone, f"no page has these any more: {gone}"


@pytest.mark.parametrize(
    "entry",
    [entry for entry in DOCUMENTED if entry.words[0] in ("replays-ingest", "celery")],
    ids=lambda entry: entry.text,
)
def test_the_words_and_options_of_a_command_exist(
    entry: Documented, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Every word and option of a documented command is accepted by the command's own parser."""
    monkeypatch.chdir(ROOT)
    file = tmp_path / "file"
    file.touch()
    ids = {"batches": ["t-0-1-2"], "dlq": ["0-1"], "replay": ["0" * 32], "FILE": [str(file)]}
    program, *words = fill_placeholders(entry.words, ids)

    try:
        parse(celery if program == "celery" else main, program, words)
    except click.MissingParameter:
        assert is_mention(entry)


def parse(command: click.Command, name: str, words: list[str]) -> None:
    """Parses a command as click does before it calls anything. Raises click.UsageError."""
    context = None
    while True:
        context = command.make_context(name, list(words), parent=context)
        if command is celery:
            context.obj = CLIContext(app=app, no_color=True, workdir=None)
        rest = [*context._protected_args, *context.args]
        if not isinstance(command, click.Group) or not rest:
            return
        _, child, words = command.resolve_command(context, rest)
        assert child is not None
        command, name = child, str(child.name)


@pytest.mark.parametrize(
    "entry", [entry for entry in DOCUMENTED if entry.words[0] == "make"], ids=lambda entry: entry.text
)
def test_a_make_target_exists(entry: Documented):
    completed = subprocess.run(
        ["make", "-n", *entry.words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )

    assert completed.returncode == 0, completed.stderr


@pytest.mark.parametrize(
    "entry", [entry for entry in DOCUMENTED if entry.words[0] == "python"], ids=lambda entry: entry.text
)
def test_a_module_accepts_its_documented_options(entry: Documented, monkeypatch: pytest.MonkeyPatch):
    """Every documented option of a module is accepted by the module's own parser."""
    _, flag, module, *options = entry.words
    assert flag == "-m"
    specification = importlib.util.find_spec(module)
    if specification is not None and specification.submodule_search_locations is not None:
        module = f"{module}.__main__"
        specification = importlib.util.find_spec(module)
    assert specification is not None
    assert specification.origin is not None
    source = Path(specification.origin).read_text()
    if "argparse" not in source:
        assert all(option in source for option in options)
        return

    try:
        program = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if module.startswith("benchmarks.") and not str(error.name).startswith("benchmarks"):
            pytest.skip(f"the extra bench is not installed: {error.name}")
        raise
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed_only)
    monkeypatch.setattr(sys, "argv", [module, *options])
    with pytest.raises(SystemExit) as ended:
        program.main()

    assert ended.value.code == 0


def parsed_only(parser: argparse.ArgumentParser, arguments: list[str] | None = None) -> None:
    """Replaces `parse_args`, so that a program ends after it has parsed its arguments."""
    parser.parse_known_args(arguments)[1] and parser.error("unknown option")
    parser.exit()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("entry", TO_RUN, ids=lambda entry: entry.text)
def test_a_documented_command_succeeds(
    entry: Documented,
    system: System,
    placeholder_values: dict[str, list[str]],
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    program, *words = fill_placeholders(entry.words, placeholder_values)
    words += [word for word in RUN[entry.group].split() if word not in words]
    name = "REPLAYS_BIGQUERY_ENDPOINT"
    env = {**system.env, name: system.stack.settings()[name], "COLUMNS": "120"}

    if not entry.text.startswith(OWN_PROCESS):
        monkeypatch.chdir(directory)
        result = CliRunner(env=env).invoke(main, words)
        assert result.exit_code == 0, (words, result.output[-3000:], result.exception)
        return
    module = "celery" if program == "celery" else "ingest.cli"
    completed = PARENTS.run(
        [sys.executable, "-m", module, *words], {**os.environ, **env}, directory, COMMAND_SECONDS_MAX
    )

    assert completed.exit_code == 0, (words, completed.stdout[-3000:], completed.stderr[-3000:])


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory of the commands.

    Files that one command writes are available to the next, and are deleted at the end.
    """
    path = tmp_path_factory.mktemp("at")
    yield path
    down = [sys.executable, "-m", "ingest.cli", "local", "down", "--directory", str(path / "stack")]
    subprocess.run(down, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, timeout=60, check=False)
