"""Loads the settings and reports all errors at once.

Settings come from `REPLAYS_*` in the environment, or from a TOML file named by `REPLAYS_SETTINGS_FILE` (keys
without the prefix, lower case); the environment takes precedence.
"""

from __future__ import annotations

import difflib
import os
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping, Set
from enum import Enum
from pathlib import Path
from typing import IO, Any, Literal, TypeVar, cast, get_args, get_origin

import click
from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import SettingsError as UnreadableSetting

from tasks.errors import shortened
from tasks.printed import printable, without_secrets
from tasks.reader_settings import READER_SETTINGS
from tasks.settings import ENV_PREFIX, FILE_VARIABLE, Settings
from tasks.units import MiB

# Variables with the prefix that are not settings: the file name, and variables of the embedded stack and tests.
NON_SETTING_PREFIXES = (FILE_VARIABLE, f"{ENV_PREFIX}LOCAL_", f"{ENV_PREFIX}TEST_", f"{ENV_PREFIX}FIXTURES")


class SettingsError(click.ClickException):
    """Settings that cannot be used. The message has one line per mistake with the name, the value, and the allowed
    values.

    Commands do not catch it: click prints the message and exits with 2.
    """

    exit_code = 2

    def show(self, file: IO[Any] | None = None) -> None:
        """click calls this at the end of the command."""
        click.echo(self.printed, file=file or sys.stderr)

    @property
    def printed(self) -> str:
        """The message with unprintable characters escaped."""
        return "\n".join(printable(line) for line in self.message.split("\n"))


VALUE_CHARACTERS_MAX = 100
# The similarity of REDIS_URI and REDIS_URL is 0.89; that of CLICKHOUSE_HOST and CLICKHOUSE_USER is 0.80.
SIMILARITY_RATIO_MIN = 0.85
# Kubernetes sets this variable in every container.
POD_VARIABLE = "KUBERNETES_SERVICE_HOST"
SettingsT = TypeVar("SettingsT", bound=Settings)


def in_pod() -> bool:
    """Returns True in a Kubernetes pod, where the loopback interface is private to the pod."""
    return POD_VARIABLE in os.environ


def load_fleet() -> Settings:
    """Loads the worker settings from the environment and the file. Raises SettingsError.

    Readers and workers may share an environment: reader settings are recognized but not validated.
    """
    return _load(Settings, [*_unknown(Settings.model_fields.keys() | READER_SETTINGS, os.environ)])


def load_strictly(kind: type[SettingsT]) -> SettingsT:
    """Loads the settings of `kind` from the environment and the settings file. Names that are not settings of
    `kind` are reported as unknown. Raises SettingsError.
    """
    return _load(kind, [*_unknown(kind.model_fields.keys(), os.environ)])


def _load(kind: type[SettingsT], mistakes: list[str]) -> SettingsT:
    path = os.environ.get(FILE_VARIABLE)
    if path:
        unreadable = _unreadable(path)
        if unreadable:
            raise _refusal([f"{FILE_VARIABLE}={path}: {unreadable}"])
    try:
        loaded = cast("Callable[[], SettingsT]", kind)()
    except ValidationError as error:
        mistakes += [_mistake(kind, detail) for detail in error.errors(include_url=False)]
    except UnreadableSetting as error:
        mistakes.append(_undecoded(kind, error))
    if mistakes:
        raise _refusal(mistakes)
    return loaded


def _refusal(mistakes: Iterable[str]) -> SettingsError:
    return SettingsError("\n".join(f"wrong setting: {' '.join(mistake.split())}" for mistake in mistakes))


def _unreadable(path: str) -> str:
    """Returns the reason why the settings file is unusable; empty if it is usable."""
    try:
        with Path(path).open("rb") as file:
            tomllib.load(file)
    except FileNotFoundError:
        return "file not found: correct the path"
    except UnicodeDecodeError:
        return "it is not UTF-8: save it as UTF-8"
    except tomllib.TOMLDecodeError as error:
        return f"it is not valid TOML, correct it: {error}"
    except (OSError, ValueError) as error:
        return (
            f"it cannot be read ({getattr(error, 'strerror', None) or error}): correct the path or its permissions"
        )
    return ""


def _undecoded(kind: type[Settings], error: Exception) -> str:
    """Returns the error for a setting that is not valid JSON. The error omits the value, which may contain a
    password.
    """
    names = [name for name in kind.model_fields if f'"{name}"' in str(error)]
    name = f"{ENV_PREFIX}{names[0].upper()}" if names else str(error)
    return f'{name}: not a JSON object ({error.__cause__}): write it as {{"name": "value"}}'


def allowed(field: FieldInfo) -> str:
    """Returns the allowed values as text: `1 to 1024`, `one of earliest, latest`, `matching ^[a-z]+$`."""
    values = _literals(field.annotation)
    if values:
        several = get_origin(field.annotation) is tuple
        return ("any of " if several else "one of ") + ", ".join(repr(v) if v == "" else str(v) for v in values)
    found: dict[str, Any] = {}
    for constraint in field.metadata:
        for name in ("ge", "gt", "le", "lt", "min_length", "pattern"):
            value = getattr(constraint, name, None)
            if value is not None:
                found[name] = value
    if "pattern" in found:
        return f"matching {found['pattern']}"
    if found.get("min_length"):
        return "not empty"
    low = number(found["ge"]) if "ge" in found else f"above {number(found['gt'])}" if "gt" in found else ""
    high = number(found["le"]) if "le" in found else f"below {number(found['lt'])}" if "lt" in found else ""
    return " to ".join(part for part in (low, high) if part)


def number(value: float) -> str:
    """Formats a number. Whole mebibytes are also given in MiB: `16777216 (16 MiB)`."""
    if isinstance(value, int) and value >= MiB and value % MiB == 0:
        return f"{value} ({value // MiB} MiB)"
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def _literals(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return tuple(annotation)
    return tuple(value for part in get_args(annotation) for value in _literals(part))


def _unknown(known: Set[str], environ: Mapping[str, str]) -> Iterable[str]:
    """Yields one line per unknown REPLAYS_* variable and per unknown key in the settings file, with the nearest
    known name."""
    names = {ENV_PREFIX + name.upper() for name in known}
    for variable in sorted(environ):
        name = variable.upper()
        if name.startswith(ENV_PREFIX) and name not in names and not name.startswith(NON_SETTING_PREFIXES):
            yield f"{variable} is an unknown setting; {_nearest(name, names)}"
    path = environ.get(FILE_VARIABLE)
    if path and not _unreadable(path):
        keys = tomllib.loads(Path(path).read_text("utf-8"))
        for key in sorted(set(keys) - known):
            yield f"{key} in {path} is an unknown setting; {_nearest(key, known)}"


def _nearest(name: str, names: Iterable[str]) -> str:
    """Returns advice on an unknown name. Suggests a known name only if it is similar, because the name of an
    unrelated setting would be misleading. The comparison leaves out the prefix, which all names share.
    """
    by_text = {known.removeprefix(ENV_PREFIX): known for known in names}
    close = difflib.get_close_matches(name.removeprefix(ENV_PREFIX), by_text, n=1, cutoff=SIMILARITY_RATIO_MIN)
    if close:
        return f"did you mean {by_text[close[0]]}?"
    return "remove it (docs/settings.md lists them all; an option of a command, such as --port, is not a setting)"


def _mistake(kind: type[Settings], detail: Any) -> str:
    """Returns the one-line error message for an invalid value. The message does not contain secret values."""
    name = str(detail["loc"][0]) if detail["loc"] else ""
    field = kind.model_fields.get(name)
    if field is None:
        return str(detail["msg"]).removeprefix("Value error, ")
    text = without_secrets(repr(detail["input"]))
    # Options and addresses may contain a password.
    secret = field.annotation is SecretStr or name == "kafka_options" or "@" in text
    value = "(secret)" if secret else shortened(text, VALUE_CHARACTERS_MAX)
    range_ = allowed(field)
    text = f"{ENV_PREFIX}{name.upper()}={value}: {str(detail['msg']).removeprefix('Value error, ')}"
    return f"{text}; allowed: {range_}" if range_ else text
