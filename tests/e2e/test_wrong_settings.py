"""Given any kind of wrong setting, every command prints one line that names the setting and says what to do, and
exits with 2.

The commands are read from the command-line program itself, so new commands are included. Our commands run in this
process; `celery` commands and servers run in forks of a process that has imported them (`tests.kit.prestarted`).
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import click
import pytest
from click.testing import CliRunner

from ingest.cli.main import main
from ingest.cli.values import BatchId, LetterId
from ingest.local.servers.tls import make_certificates
from ingest.settings import Settings
from tests.kit.paths import ROOT
from tests.kit.prestarted import PARENTS, ProgramResult
from tests.kit.wrong_values import refused_values

SECRET = "hunter2-of-this-test"
SIBLING_COMMANDS = 2
COMMAND_SECONDS_MAX = 60.0
ALL_COMMANDS = bool(os.environ.get("REPLAYS_TEST_ALL_COMMANDS"))


@dataclass(frozen=True, slots=True)
class BrokenSetting:
    """One wrong setting. The line must contain all `names`. `reader` is true for a setting of the reader, which
    Celery programs do not read.

    A setting whose `kind` is true (the first of its kind) is tested with every command, any other with a few.
    """

    id: str
    variables: dict[str, str]
    names: tuple[str, ...]
    reader: bool = False
    kind: bool = False


def broken(id: str, names: str = "", *, reader: bool = False, kind: bool = False, **values: str) -> BrokenSetting:
    """Returns a wrong setting. `values` maps each setting's name (in lower case, without the prefix) to an invalid
    value.

    If `names` is empty, the line must contain the name of each setting in `values`.
    """
    variables = {f"REPLAYS_{name.upper()}": value for name, value in values.items()}
    return BrokenSetting(id, variables, tuple(names.split()) or tuple(variables), reader, kind)


# The placeholders {folder}, {pem} (a CA certificate), {key} (the private key of another certificate) and {text}
# (not PEM) are replaced by paths.
BROKEN = (
    broken("no number", kind=True, redis_timeout_seconds="soon"),
    broken("no number, of the reader", reader=True, batch_messages_max="many"),
    broken("no integer", gcs_connections="1.5"),
    broken("no boolean", tracing="perhaps"),
    broken("empty number", sink_timeout_seconds=""),
    broken("not a number", sink_timeout_seconds="nan"),
    broken("out of range", kind=True, sink_timeout_seconds="0"),
    broken("out of range, of the reader", reader=True, http_port="65536"),
    broken("infinite", sink_timeout_seconds="inf"),
    broken("port out of range", flower_port="70000"),
    broken("no choice", kind=True, log_level="loud"),
    broken("no sink", sinks="gcs,kafka,dead_letter"),
    broken("no dead letters", sinks="gcs"),
    broken("pattern", key_prefix="Not Allowed"),
    broken("empty text", kafka_topic=""),
    broken("topic that Kafka refuses", kind=True, kafka_topic="ingest/recordings"),
    broken("topic of dead letters that Kafka refuses", dead_letter_topic=".."),
    broken("bucket that Cloud Storage refuses", gcs_bucket="gs://replays"),
    broken("project that Google refuses", bigquery_project="My Project"),
    broken("host with a scheme", datadog_host="http://agent"),
    broken("socket that is no path", datadog_socket="dsd.socket"),
    broken("listens on a URL", reader=True, http_host="http://0.0.0.0"),
    broken("instance id that Kafka refuses", reader=True, kafka_instance_id="reader 0"),
    broken("line break in a password", clickhouse_password=f"{SECRET}\n"),
    broken("secret of spaces", shared_key=" "),
    broken("bytes that are no UTF-8", clickhouse_user="gr\udcfcn"),
    broken("broker that cannot exist", kafka_brokers="{{"),
    broken("unknown setting", kind=True, redis_ulr="redis://127.0.0.1"),
    broken("unknown setting like no other", wxyz="1"),
    broken("no TOML", "REPLAYS_SETTINGS_FILE", kind=True, settings_file="{folder}/broken.toml"),
    broken("TOML in another encoding", settings_file="{folder}/latin.toml"),
    broken("no settings file", kind=True, settings_file="/nowhere/replays.toml"),
    broken("settings file is a folder", settings_file="{folder}"),
    broken("unknown key", ["redis_ulr", "REPLAYS_SETTINGS_FILE"][0], settings_file="{folder}/unknown.toml"),
    broken("wrong value in the file", "REPLAYS_REDIS_TIMEOUT_SECONDS", settings_file="{folder}/wrong.toml"),
    broken("table in the file", "REPLAYS_REDIS_TIMEOUT_SECONDS", settings_file="{folder}/table.toml"),
    *(
        broken(f"{name}: {id}", f"REPLAYS_{name.upper()}", kind=id == "missing", **{**more, name: path})
        for name, more in {
            "redis_tls_ca_file": {"redis_url": "rediss://127.0.0.1"},
            "kafka_ssl_ca_file": {"kafka_security_protocol": "SSL"},
            "clickhouse_tls_ca_file": {"clickhouse_url": "https://127.0.0.1"},
        }.items()
        for id, path in {"missing": "/nowhere/ca.pem", "a folder": "{folder}", "no PEM": "{text}"}.items()
    ),
    broken("certificate without key", "REPLAYS_KAFKA_SSL_CERTIFICATE_FILE", kafka_security_protocol="SSL",
           kafka_ssl_certificate_file="{pem}"),
    broken("no pair", "REPLAYS_KAFKA_SSL_KEY_FILE", kafka_security_protocol="SSL",
           kafka_ssl_certificate_file="{pem}", kafka_ssl_key_file="{key}"),
    broken("certificates without encryption", "REPLAYS_KAFKA_SECURITY_PROTOCOL", kafka_ssl_ca_file="{pem}"),
    broken("certificates for plain text", clickhouse_tls_ca_file="{pem}"),
    broken("no credentials of Google's", google_credentials_file="/nowhere/key.json"),
    broken("credentials that are no JSON", kind=True, google_credentials_file="{text}"),
    broken("signing key without the rest", kind=True, task_security_key_file="{key}"),
    broken("trusted by nobody", "REPLAYS_TASK_SECURITY_STORE", task_security_key_file="{key}",
           task_security_certificate_file="{pem}", task_security_store="/nowhere/*.pem"),
    broken("redis over http", kind=True, redis_url="http://127.0.0.1:6379"),
    broken("redis without a scheme", redis_url="127.0.0.1:6379"),
    broken("clickhouse over its own protocol", kind=True, clickhouse_url="clickhouse://127.0.0.1:9000"),
    broken("clickhouse without a host", clickhouse_url="http://"),
    broken("clickhouse with a wrong port", clickhouse_url="http://127.0.0.1:port"),
    broken("clickhouse with a password", "REPLAYS_CLICKHOUSE_URL REPLAYS_CLICKHOUSE_PASSWORD",
           clickhouse_url=f"http://default:{SECRET}@127.0.0.1:8123"),
    broken("clickhouse with options", clickhouse_url="http://127.0.0.1:8123/?database=mine"),
    broken("cloud storage over gs", gcs_endpoint="gs://replays"),
    broken("bigquery without a scheme", bigquery_endpoint="127.0.0.1:9050"),
    broken("bigquery's gRPC address without a scheme", bigquery_storage_endpoint="127.0.0.1:9060"),
    broken("an unknown API of bigquery", bigquery_write="grpc"),
    broken("brokers over http", kind=True, kafka_brokers="http://127.0.0.1:9092"),
    broken("brokers with a wrong port", kafka_brokers="127.0.0.1:9092,127.0.0.1:many"),
    broken("no address of sentry", sentry_dsn=f"sentry.example.com/{SECRET}"),
    broken("options that are no JSON", kafka_options="{fetch"),
    broken("options that are a list", kafka_options='["fetch.min.bytes"]'),
    broken("guarded option", kafka_options='{"enable.auto.commit": "true"}'),
    broken("unknown option", kind=True, kafka_options='{"no.such.property": "1"}'),
    broken("option out of range", kafka_options='{"socket.timeout.ms": "-5"}'),
    broken("no mechanism", "REPLAYS_KAFKA_", kafka_security_protocol="SASL_PLAINTEXT"),
    broken("mechanism without a protocol", "REPLAYS_KAFKA_SASL_MECHANISM", kafka_sasl_mechanism="PLAIN"),
    broken("drain after the session", reader=True, drain_deadline_seconds="40",
           kafka_session_timeout_seconds="30"),
    broken("batch above what may be in flight", reader=True, batch_bytes_max="2097152",
           in_flight_bytes_max="1048576"),
    broken("first retry above the longest", reader=True, retry_backoff_seconds="20",
           retry_backoff_seconds_max="10"),
    broken("bytes that expire before the deadline", "REPLAYS_STAGED_TTL_SECONDS", reader=True,
           staged_ttl_seconds="600", flush_deadline_seconds="600"),
    broken("first backoff above the longest", kind=True, task_backoff_seconds="20", task_backoff_seconds_max="10"),
    broken("cool-down above the longest", breaker_cool_seconds="20", breaker_cool_seconds_max="10"),
    broken("packed without an index", "REPLAYS_GCS_LAYOUT", gcs_layout="packed", sinks="gcs,dead_letter"),
)  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Maps each placeholder to its value."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "broken.toml").write_text("kafka_topic = \n")
    (folder / "latin.toml").write_bytes('kafka_topic = "gr\xfcn"\n'.encode("latin-1"))
    (folder / "unknown.toml").write_text('redis_ulr = "redis://127.0.0.1"\n')
    (folder / "wrong.toml").write_text('redis_timeout_seconds = "soon"\n')
    (folder / "table.toml").write_text("[redis_timeout_seconds]\nseconds = 5\n")
    (folder / "text").write_text("this is no certificate\n")
    made = make_certificates(folder / "made")
    return {
        "folder": str(folder),
        "text": str(folder / "text"),
        "pem": str(made.ca),
        "key": str(made.client_key),
    }


@pytest.fixture(autouse=True)
def without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removes the caller's REPLAYS_* variables."""
    for name in list(os.environ):
        if name.startswith("REPLAYS_"):
            monkeypatch.delenv(name)


def fill_placeholders(variables: dict[str, str], files: dict[str, str]) -> dict[str, str]:
    """Returns the variables with their placeholders replaced."""
    for name, value in files.items():
        variables = {variable: text.replace(f"{{{name}}}", value) for variable, text in variables.items()}
    return variables


def leaf_commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yields every executable command as a tuple of its words. The tuple is empty for the command that runs the
    reader."""
    if isinstance(command, click.Group):
        if command.invoke_without_command:
            yield path
        for name, below in command.commands.items():
            yield from leaf_commands(below, (*path, name))
    else:
        yield path


def words(path: tuple[str, ...], folder: str) -> list[str]:
    """Returns the words of the command, with values for all required arguments."""
    command: click.Command = main
    for name in path:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    given = [*path]
    for parameter in command.params if path else ():
        if parameter.required:
            value = _value(parameter.type, folder)
            given += [parameter.opts[0], value] if isinstance(parameter, click.Option) else [value]
    return given


def _value(kind: Any, folder: str) -> str:
    if isinstance(kind, click.File | click.Path):
        return f"{folder}/text"
    values = {BatchId: "topic-0-10-20", LetterId: "0-17"}
    return "1" if isinstance(kind, click.IntRange | click.FloatRange) else values.get(type(kind), "a" * 32)


COMMANDS = [path for path in leaf_commands(main) if path != ("completion",)]  # This command reads no settings.
FLOWER_LOGIN = {"REPLAYS_FLOWER_BASIC_AUTH": "somebody:long-enough"}
CELERY = (("worker",), ("flower",), ("inspect", "ping"), ("report",))


def commands_for(case: BrokenSetting, commands: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Returns all commands if the setting is the first of its kind; otherwise SIBLING_COMMANDS commands, which
    differ from one setting to the next.
    """
    if case.kind:
        return list(commands)
    first = BROKEN.index(case)
    return [commands[(first * SIBLING_COMMANDS + number) % len(commands)] for number in range(SIBLING_COMMANDS)]


def expect_one_line(ended: ProgramResult, names: tuple[str, ...], who: str) -> None:
    """Asserts that the program exited with code 2, and wrote one helpful line to standard error and nothing to
    standard output."""
    assert ended.exit_code == 2, (who, ended)
    assert len(ended.stderr.splitlines()) == 1, (who, ended)
    for name in names:
        assert name in ended.stderr, (who, ended)
    assert "Traceback" not in ended.stderr, (who, ended)
    assert SECRET not in ended.stderr, (who, ended)
    assert any(word in ended.stderr for word in ADVICE), (who, ended)
    assert ended.stdout == "", (who, ended)


ADVICE = (
    "allowed", "set ", "correct", "remove", "did you mean", "is not of the form", "write it as", "save it",
    "lower", "add it", "generate", "name a", "choose",  "use ", "cannot be set", "Input should be",
)  # fmt: skip


def test_the_commands_were_found() -> None:
    """The list contains the command that runs the reader, commands without subcommands, and subcommands."""
    assert {(), ("check",), ("batches", "retry"), ("local", "up"), ("demo",)} <= set(COMMANDS)
    assert len(COMMANDS) > 25


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.id)
def test_every_command_refuses_a_wrong_setting_in_one_line(
    case: BrokenSetting, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command prints one line that says which setting is wrong and what to do.

    Apart from printing this line, the command does nothing.
    """
    for name, value in fill_placeholders(case.variables, files).items():
        monkeypatch.setenv(name, value)
    for path in commands_for(case, COMMANDS):
        found = CliRunner().invoke(main, words(path, files["folder"]))

        assert not isinstance(found.exception, Exception), (path, found.exception)
        ended = ProgramResult(found.exit_code, found.stdout, found.stderr)
        expect_one_line(ended, case.names, " ".join(path) or "the reader")


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_every_setting_is_refused_in_one_line(
    name: str, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every invalid value of every setting is refused with a one-line error. `make wrong-settings` tests each
    value with all commands; other test runs use one command per value.

    No control character is printed.
    """
    variable = f"REPLAYS_{name.upper()}"
    wrong = [*refused_values(name, files["folder"], files["text"])]
    assert wrong, "no value of its type is refused"
    first = sorted(Settings.model_fields).index(name)
    for number, value in enumerate(wrong):
        monkeypatch.setenv(variable, value)
        for path in COMMANDS if ALL_COMMANDS else [COMMANDS[(first + number) % len(COMMANDS)]]:
            found = CliRunner().invoke(main, words(path, files["folder"]))

            assert not isinstance(found.exception, Exception), (path, value, found.exception)
            expect_one_line(
                ProgramResult(found.exit_code, found.stdout, found.stderr),
                (variable,),
                f"{' '.join(path)} {value!r}",
            )
            assert found.stderr.rstrip("\n").isprintable(), found.stderr


def test_an_invalid_settings_file_on_the_command_line_is_refused(files: dict[str, str]) -> None:
    """An invalid settings file on the command line causes the same error as an invalid file in
    REPLAYS_SETTINGS_FILE.
    """
    for name in ("nothing.toml", "broken.toml", "latin.toml", ""):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("REPLAYS_SETTINGS_FILE", "")
            found = CliRunner().invoke(main, ["--settings", f"{files['folder']}/{name}", "status"])
        expect_one_line(ProgramResult(found.exit_code, found.stdout, found.stderr), (name,), name)


def test_help_needs_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLAYS_REDIS_TIMEOUT_SECONDS", "soon")
    for path in COMMANDS:
        assert CliRunner().invoke(main, [*path, "--help"]).exit_code == 0, path


def test_several_mistakes_are_a_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several mistakes are reported in one run, one line each."""
    for name, value in {"REDIS_TIMEOUT_SECONDS": "soon", "LOG_LEVEL": "loud", "REDIS_ULR": "x"}.items():
        monkeypatch.setenv(f"REPLAYS_{name}", value)

    found = CliRunner().invoke(main, ["status"])

    assert found.exit_code == 2
    assert [line.split("REPLAYS_")[0] for line in found.stderr.splitlines()] == ["wrong setting: "] * 3


PROGRAMS = {"celery": "celery", "replays-ingest": "ingest.cli"}


def run_program(program: str, *words: str, **variables: str) -> ProgramResult:
    """Runs a program that exits by itself, with only these settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("REPLAYS_")}
    return PARENTS.run(
        [sys.executable, "-m", PROGRAMS[program], *words], kept | variables, ROOT, COMMAND_SECONDS_MAX
    )


@pytest.mark.parametrize("case", [case for case in BROKEN if not case.reader], ids=lambda case: case.id)
def test_celery_commands_refuse_a_wrong_setting_in_one_line(case: BrokenSetting, files: dict[str, str]) -> None:
    """Workers and Flower print which setting is wrong and what to do, and exit."""
    variables = FLOWER_LOGIN | fill_placeholders(case.variables, files)
    for command in CELERY[:2] if case.kind else commands_for(case, CELERY)[:1]:
        ended = run_program("celery", "-A", "tasks", *command, **variables)

        expect_one_line(ended, case.names, " ".join(command))


def test_the_readers_values_are_left_to_the_reader() -> None:
    """Reader and workers may share an environment, so a worker does not validate the reader's settings."""
    ended = run_program("celery", "-A", "tasks", "report", REPLAYS_BATCH_MESSAGES_MAX="many")

    assert ended.exit_code == 0, ended


LISTENERS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("replays-ingest",), "REPLAYS_HTTP_PORT"),
    (("replays-ingest", "web", "--port"), ""),
    (("replays-ingest", "flower"), "REPLAYS_FLOWER_PORT"),
    (("celery", "-A", "tasks", "flower"), "REPLAYS_FLOWER_PORT"),
    (("celery", "-A", "tasks", "worker"), "REPLAYS_WORKER_HTTP_PORT"),
)


@pytest.mark.parametrize(("command", "setting"), LISTENERS, ids=lambda part: " ".join(part) if part else "")
def test_a_port_in_use_is_refused_in_one_line(command: tuple[str, ...], setting: str) -> None:
    """If a port is in use, the program prints one line that says so and explains how to choose another port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        variables = FLOWER_LOGIN | {"REPLAYS_LOG_FORMAT": "text"}
        if setting:
            variables[setting] = port
        else:
            command = (*command, port)
        ended = run_program(*command, **variables)

    expect_one_line(ended, (setting or "--port", port), " ".join(command))
