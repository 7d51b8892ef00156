"""In the help, every command is in one section, with its complete first sentence and an example that can be
parsed.
"""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ingest.cli.first_steps import no_broker_message
from ingest.cli.listing import EXAMPLES, FIRST_EXAMPLES, SECTIONS, first_sentence, leaf_commands
from ingest.cli.main import main
from ingest.settings import Settings
from tests.kit.paths import ROOT


def test_every_command_is_in_one_section():
    """Every command of the program is listed in exactly one section, and no section lists an unknown command."""
    assert sorted(main.commands) == sorted(name for names in SECTIONS.values() for name in names)


def test_help_shows_whole_sentences_on_80_columns():
    """On a terminal with 80 columns, the help shows the complete first sentence of every command."""
    shown = CliRunner().invoke(main, ["--help"], terminal_width=80).output

    assert "..." not in shown.replace("[ARGS]...", "")
    assert max(map(len, shown.splitlines())) <= 80
    for command in main.commands.values():
        assert " ".join(first_sentence(command).split()) in " ".join(shown.split())


def test_every_command_has_an_example_that_parses(monkeypatch: pytest.MonkeyPatch):
    """The example of every command is accepted by the command's own parser."""
    monkeypatch.chdir(ROOT)
    assert set(EXAMPLES) == {path for path, _ in leaf_commands(main)}
    first = {
        "demo": "replays-ingest demo",
        "local up": "replays-ingest local up --all",
        "": list(FIRST_EXAMPLES)[-1],
    }
    assert list(first.values()) == list(FIRST_EXAMPLES)
    for path, text in [*first.items(), *EXAMPLES.items()]:
        filled = text.replace("BATCH_ID", "topic-0-10-20").replace("REPLAY_ID", "0" * 32)
        words = shlex.split(filled.removeprefix('eval "$(').removesuffix(')"').rpartition("| ")[2])
        assert words[0] == "replays-ingest"
        assert parsed(words[1:]) == path


def parsed(words: list[str]) -> str:
    """Returns the command that click resolves from these words, with all options parsed. Raises UsageError."""
    command: click.Command = main
    context, path = None, ""
    while True:
        context = command.make_context(command.name or "", list(words), parent=context)
        rest = [*context._protected_args, *context.args]
        if not isinstance(command, click.Group) or not rest:
            return path
        _, found, words = command.resolve_command(context, rest)
        assert found is not None
        command, path = found, f"{path} {found.name}".strip()


def test_the_help_ends_with_the_first_steps_of_a_stranger():
    """The demo and the whole system on this machine come first: they need no servers."""
    shown = CliRunner().invoke(main, ["--help"], terminal_width=80).output.splitlines()

    assert [line.partition("  ")[0] for line in map(str.strip, shown[-3:])] == [
        "replays-ingest demo",
        "replays-ingest local up --all",
        "replays-ingest --dry-run --messages 100",
    ]


def test_an_example_is_at_the_end_of_the_help():
    shown = CliRunner().invoke(main, ["dlq", "replay", "--help"]).output

    assert EXAMPLES["dlq replay"] in " ".join(shown.splitlines()[-1].split())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_even_with_wrong_settings(shell: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("REPLAYS_BATCH_MESSAGES_MAX", "none")

    found = CliRunner().invoke(main, ["completion", shell])

    assert found.exit_code == 0
    assert f"_REPLAYS_INGEST_COMPLETE={shell}_complete" in found.output


def test_a_shell_completes_commands():
    """With the variables that bash sets to complete `replays-ingest loc`, the program prints the completion
    `local`.
    """
    environment = {"COMP_WORDS": "replays-ingest loc", "COMP_CWORD": "1", "PYTHONPATH": str(ROOT)}
    program = "import sys; sys.argv[0] = 'replays-ingest'; from ingest.cli.main import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment, "_REPLAYS_INGEST_COMPLETE": "bash_complete"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert result.stdout.splitlines() == ["plain,local"]


def test_without_a_broker_help_fits_on_one_screen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """If no broker is configured and no broker listens at the default address, a short help text is printed."""
    monkeypatch.chdir(tmp_path)
    closed = closed_port()
    settings = Settings.model_construct(_fields_set=set(), kafka_brokers=f"127.0.0.1:{closed}")

    text = no_broker_message(settings)

    assert f"127.0.0.1:{closed}" in text
    assert "local up --all" in text
    assert len(text.splitlines()) < 24
    assert max(map(len, text.splitlines())) <= 80


def test_a_configured_or_reachable_broker_is_used():
    """If a broker is configured or reachable, the reader starts without printing help."""
    closed = closed_port()
    configured = Settings.model_construct(_fields_set={"kafka_brokers"}, kafka_brokers=f"127.0.0.1:{closed}")
    with socket.create_server(("127.0.0.1", 0)) as answering:
        port = answering.getsockname()[1]
        there = Settings.model_construct(_fields_set=set(), kafka_brokers=f"127.0.0.1:{closed},127.0.0.1:{port}")

        assert no_broker_message(there) == no_broker_message(configured) == ""


def closed_port() -> int:
    """Returns a port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
