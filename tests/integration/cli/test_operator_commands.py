"""Operator commands: state, parked batches, dead letters, rules for projects, schema and checks."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from ingest.cli.main import main
from ingest.core import events as on
from ingest.core.model import OffsetRange
from ingest.operate.text import utc_text
from tests.kit.commands import CommandResult, command, on_terminal, without_terminal
from tests.kit.operator_system import MESSAGES, READER, OperatorSystem

UNREACHABLE_REDIS = {"REPLAYS_REDIS_URL": "redis://127.0.0.1:1/0"}


def failed(result: CommandResult) -> str:
    """Runs a command that fails, and returns its error line."""
    assert result.code == 1
    return result.err.splitlines()[-1]


# State


def test_the_state_of_the_system_is_one_page(operator_system: OperatorSystem):
    """`status` prints readers, sinks and parked batches as text and as JSON, and `top` as text."""
    batch = operator_system.park(0, 2)
    page = command(operator_system.env, "status")
    reported = command(operator_system.env, "status", "--json").json
    live = command(operator_system.env, "top", "--once")

    assert [reader["reader"] for reader in reported["readers"]] == [READER]
    assert [parked["batch_id"] for parked in reported["parked"]] == [batch.id]
    assert {sink["sink"]: sink["switched_on"] for sink in reported["sinks"]}["gcs"] is True
    for text in (page.out, live.out):
        assert READER in text
        assert "clickhouse is away" in text


def test_without_a_terminal_top_prints_one_page_and_ends(operator_system: OperatorSystem):
    """If its output is a pipe, `top` behaves as with `--once`."""
    piped = without_terminal(operator_system.env, "top")

    assert (piped.code, piped.err) == (0, "")
    assert piped.out.count("unacknowledged tasks") == 1  # in the headline


def test_the_page_can_be_saved_as_svg(operator_system: OperatorSystem, tmp_path: Path):
    """When the page is saved as SVG, nothing is printed on the terminal."""
    result = command(operator_system.env, "top", "--svg", str(tmp_path / "top.svg"))

    assert (result.code, result.out) == (0, "")
    assert (tmp_path / "top.svg").read_text().startswith("<svg")


@pytest.mark.parametrize(
    "arguments",
    [
        ("status",),
        ("top", "--once"),
        ("batches", "ls"),
        ("batches", "show", "topic-0-1-2"),
        ("batches", "retry", "topic-0-1-2"),
        ("tenants", "ls"),
    ],
    ids=" ".join,
)
def test_without_redis_each_command_reports_what_to_check(
    operator_system: OperatorSystem, arguments: tuple[str, ...]
):
    """Without Redis, each command prints one line that says what to check, and exits with 1."""
    result = command(operator_system.env | UNREACHABLE_REDIS, *arguments)

    assert (result.code, len(result.err.splitlines())) == (1, 1)
    assert "start Redis, or correct REPLAYS_REDIS_URL" in result.err


def test_a_project_is_disabled_while_redis_is_unavailable(operator_system: OperatorSystem):
    """A project can be disabled while Redis is unavailable.

    Readers receive the rule from the operators' topic, and the next command updates the copy of the rules in
    Redis.
    """
    result = command(operator_system.env | UNREACHABLE_REDIS, "tenants", "kill", "7", "--yes")

    assert (result.code, result.out) == (
        0,
        "project 7: the rule is changed; readers apply it within two seconds\n",
    )
    assert "project 7: off" in command(operator_system.env, "tenants", "ls").out


def test_wrong_settings_give_exit_code_2(operator_system: OperatorSystem):
    """Wrong settings give exit code 2, and the error contains the setting's name, its value and the allowed
    values.
    """
    result = command(operator_system.env | {"REPLAYS_BATCH_MESSAGES_MAX": "none"}, "status")

    assert result.code == 2
    assert "batch_messages_max" in result.err.lower()


# Parked batches


def test_parked_batches_are_listed_and_shown(operator_system: OperatorSystem):
    """Parked batches are listed and shown with their errors; an empty list prints a line that says so."""
    assert "no batch is parked" in command(operator_system.env, "batches", "ls").out
    batch = operator_system.park(0, 2)

    listed = command(operator_system.env, "batches", "ls")
    reported = command(operator_system.env, "batches", "ls", "--json").json
    shown = command(operator_system.env, "batches", "show", batch.id)

    assert batch.id in listed.out
    assert reported[batch.id]["error"] == "clickhouse is away"
    assert "error        clickhouse is away" in shown.out
    assert command(operator_system.env, "batches", "show", batch.id, "--json").json == reported[batch.id]
    assert "list parked batches with `replays-ingest batches ls`" in failed(
        command(operator_system.env, "batches", "show", "none-0-0-1")
    )


def test_a_parked_batch_is_retried(operator_system: OperatorSystem):
    """When a parked batch is retried, its reader is notified, and the operator's name is recorded."""
    batch = operator_system.park(0, 2)

    result = command(operator_system.env, "batches", "retry", batch.id, "--by", "ann")

    assert result.out.strip() == f"{READER} was asked to retry {batch.id}"
    assert operator_system.next_event() == on.RetryRequested(batch.id)
    assert operator_system.coordination.audited()[0]["by"] == "ann"


def test_a_parked_batch_is_abandoned(operator_system: OperatorSystem):
    """When a parked batch is abandoned, its messages first become dead letters.

    Without `--reason` the command does nothing.
    """
    batch = operator_system.park(2, 4)

    unexplained = command(operator_system.env, "batches", "abandon", batch.id, "--reason", " ", "--yes")
    result = command(operator_system.env, "batches", "abandon", batch.id, "--reason", "the table is gone", "--yes")

    assert "a reason is required" in failed(unexplained)
    assert "2 messages are dead letters" in result.out
    assert operator_system.next_event() == on.BatchAbandoned(batch.id, OffsetRange(2, 4), "the table is gone")


def test_a_batch_of_a_stopped_reader_is_left_unchanged(operator_system: OperatorSystem):
    """The batch of a stopped reader is left unchanged, because the reader cannot be notified."""
    batch = operator_system.park(0, 2)
    operator_system.simulate_exit()

    assert READER in failed(command(operator_system.env, "batches", "retry", batch.id))
    assert READER in failed(
        command(operator_system.env, "batches", "abandon", batch.id, "--reason", "why not", "--yes")
    )
    assert operator_system.coordination.audited() == []


# Projects


def test_rules_for_projects_are_set_and_removed(operator_system: OperatorSystem):
    """Rules for projects can be set and removed, and each change is in the audit trail with the operator's
    name.
    """
    env = operator_system.env
    assert "no rules" in command(env, "tenants", "ls").out

    for arguments in (
        ("kill", "7", "--yes"),
        ("limit", "8", "--per-second", "5"),
        ("limit", "9", "--per-second", "1", "--burst", "3"),
    ):
        assert command(env, "tenants", *arguments, "--by", "ann").code == 0
    reported = command(env, "tenants", "ls", "--json").json
    text = command(env, "tenants", "ls").out
    for arguments in (("revive", "7"), ("limit", "8", "--remove"), ("limit", "9", "--remove")):
        assert command(env, "tenants", *arguments, "--by", "bob").code == 0

    assert reported == {
        "killed": [7],
        "limits": {"8": {"per_second": 5.0, "burst": 50.0}, "9": {"per_second": 1.0, "burst": 3.0}},
    }
    assert "project 7: off" in text
    assert "project 9: 1 messages per second, bursts of 3" in text
    assert command(env, "tenants", "ls", "--json").json == {"killed": [], "limits": {}}
    actions = [
        (action["what"], action["project"], action["by"]) for action in operator_system.coordination.audited()
    ]
    assert actions[-1] == ("tenant_kill", "7", "ann")
    assert actions[0] == ("tenant_limit", "9", "bob")


@pytest.mark.parametrize("options", [[], ["--per-second", "5", "--remove"]], ids=["neither", "both"])
def test_a_limit_needs_a_rate_or_none(operator_system: OperatorSystem, options: list[str]):
    """`limit` without a rate and without `none` gives exit code 2."""
    result = command(operator_system.env, "tenants", "limit", "8", *options)

    assert (result.code, "give either --per-second or --remove" in result.err) == (2, True)


# Empty lists


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("batches", "ls"), "no batch is parked"),
        (("tenants", "ls"), "no rules"),
        (("dlq", "ls", "--reason", "nothing_has_this_reason"), "no dead letter matches"),
        (("audit",), "no action is recorded"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, tuple) else "",
)
def test_an_empty_list_is_one_line_that_says_so(
    operator_system: OperatorSystem, arguments: tuple[str, ...], line: str
):
    """Every list command prints one line for an empty list, and no header."""
    assert command(operator_system.env, *arguments).out == f"{line}\n"


# Dead letters


def test_dead_letters_are_listed_shown_and_replayed(operator_system: OperatorSystem, tmp_path: Path):
    """A dry run of `dlq replay` produces nothing, a second run finds nothing, and the action is recorded."""
    operator_system.add_dead_letter(MESSAGES - 1, "no_header")
    env = operator_system.env

    listed = command(env, "dlq", "ls", "--reason", "no_header", "--json").json
    (letter,) = listed["letters"]
    text = command(env, "dlq", "ls", "--reason", "no_header")
    shown = command(env, "dlq", "show", letter["id"])
    reported = command(env, "dlq", "show", letter["id"], "--json").json
    dry = command(env, "dlq", "replay", "--id", letter["id"], "--dry-run", "--json").json
    result = command(env, "dlq", "replay", "--reason", "no_header", "--yes", "--by", "ann")
    again = command(env, "dlq", "replay", "--reason", "no_header", "--yes", "--json").json

    assert listed["counts"] == [{"reason": "no_header", "sink": "", "count": 1}]
    assert "no_header" in text.out
    assert f"{utc_text(letter['timestamp_ms'] / 1000)}" in text.out
    assert f"-0-{MESSAGES - 1} " in text.out
    assert f"timestamp     {utc_text(letter['timestamp_ms'] / 1000).replace(' ', 'T')}" in shown.out
    assert "it never parses" in shown.out
    assert reported["content"]["reject"]
    assert (dry["produced"], dry["dry_run"]) == (1, True)
    assert "1 were produced again" in result.out
    assert again["produced"] == 0
    assert operator_system.coordination.audited()[-1]["what"] == "dlq_replay"
    assert operator_system.coordination.audited()[-1]["by"] == "ann"


def test_lists_of_batches_and_letters_fit_80_columns(operator_system: OperatorSystem):
    """Each batch or letter is one line of at most 80 columns, with whole ids and offsets and a truncated error."""
    batch = operator_system.park(0, 2)
    operator_system.add_dead_letter(MESSAGES - 1, "no_header")

    batches = at_80_columns(operator_system.env, "batches", "ls")
    letters = at_80_columns(operator_system.env, "dlq", "ls")

    (parked,) = (line for line in batches if line.startswith(batch.id))
    assert "clickhouse is aw" in parked
    listed = command(operator_system.env, "dlq", "ls", "--json").json["letters"]
    rows = letters[1 : len(listed) + 1]
    assert [line.split()[0] for line in rows] == [letter["id"] for letter in listed]
    assert f" no_header        0-{MESSAGES - 1} " in rows[-1]


def at_80_columns(env: dict[str, str], *arguments: str) -> list[str]:
    """Returns the output lines of a command that runs on an 80-column terminal."""
    result = CliRunner().invoke(main, arguments, env={**env, "COLUMNS": "80"}, catch_exceptions=False)
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    return lines


def test_on_a_terminal_dangerous_commands_state_their_scope_and_ask_for_confirmation(
    operator_system: OperatorSystem,
):
    """If the operator answers no, nothing changes; `--yes` skips the question.

    Each command reports what it changed.
    """
    batch = operator_system.park(2, 4)
    operator_system.add_dead_letter(0, "no_header")

    abandoned = on_terminal(operator_system.env, "n", "batches", "abandon", batch.id, "--reason", "why not")
    replayed = on_terminal(operator_system.env, "n", "dlq", "replay", "--reason", "no_header")
    killed = on_terminal(operator_system.env, "y", "tenants", "kill", "7")
    again = command(operator_system.env, "tenants", "kill", "7", "--yes")

    assert "2 messages" in abandoned
    assert batch.id in operator_system.coordination.parked()
    assert "no_header to their topic" in replayed
    assert "stored segments in the last hour" in killed
    assert "project 7: off (was on, no limit)" in killed
    assert "project 7: still off" in again.out
    assert [action["what"] for action in operator_system.coordination.audited()] == ["tenant_kill", "tenant_kill"]
    assert command(operator_system.env, "tenants", "revive", "7").code == 0


def test_replaying_needs_a_selection(operator_system: OperatorSystem):
    """`dlq replay` without a selection gives exit code 2, because replaying all dead letters needs a separate
    option.
    """
    result = command(operator_system.env, "dlq", "replay")

    assert (result.code, "--all" in result.err) == (2, True)
    assert "list them with `replays-ingest dlq ls`" in failed(
        command(operator_system.env, "dlq", "show", "0-999999")
    )


# Schema and checks


def test_existing_schema_and_topics_are_left_unchanged(operator_system: OperatorSystem):
    """A second `migrate` changes nothing; on empty servers, a dry run lists what it would do."""
    again = command(operator_system.env, "migrate", "--topics")
    elsewhere = command(operator_system.env | {"REPLAYS_GCS_BUCKET": "elsewhere-bucket"}, "migrate", "--dry-run")

    assert (again.code, elsewhere.code) == (0, 0)
    assert "gcs: would" in elsewhere.out
    away = operator_system.env | {
        "REPLAYS_CLICKHOUSE_URL": "http://127.0.0.1:1",
        "REPLAYS_SINK_TIMEOUT_SECONDS": "1",
    }
    assert "clickhouse" in failed(command(away, "migrate"))


def test_check_lists_every_server_and_its_errors(operator_system: OperatorSystem):
    """If only the workers are missing, `check` reports one error. An unavailable server is also reported."""
    good = command(operator_system.env, "check", "--json")
    bad = command(operator_system.env | {"REPLAYS_CLICKHOUSE_URL": "http://127.0.0.1:1"}, "check")

    assert {finding["name"] for finding in good.json} >= {"redis", "clickhouse", "gcs"}
    wrong = {finding["name"].split()[0] for finding in good.json if finding["level"] == "bad"}
    assert (good.code, wrong) == (1, {"workers"}), good.out
    assert bad.code == 1
    assert "clickhouse" in bad.out


def test_a_dry_run_reads_and_commits_nothing(operator_system: OperatorSystem):
    """A dry run reads every message of the topic, and the group has no committed offset afterwards.

    None of the messages can be parsed.
    """
    result = command(operator_system.env, "--dry-run", "--messages", str(MESSAGES), "--json")

    assert result.code == 0
    assert result.json["messages"] >= MESSAGES
