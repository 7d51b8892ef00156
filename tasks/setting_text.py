"""Validates names and hosts in settings against what servers accept.

Otherwise an invalid name would fail at its first use, possibly hours later in another process.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from tasks.addresses import HOST as HOST_PATTERN


@dataclass(frozen=True, slots=True)
class SettingFormat:
    """A pattern that the whole text must match, and its description."""

    pattern: re.Pattern[str]
    allowed: str


TOPIC_CHARACTERS_MAX = 249
TOPIC = SettingFormat(
    re.compile(rf"(?!\.{{1,2}}$)[A-Za-z0-9._-]{{1,{TOPIC_CHARACTERS_MAX}}}"),
    f"1 to {TOPIC_CHARACTERS_MAX} letters, digits, dots, underscores and dashes, as Kafka names topics",
)
DEFAULT_TOPIC = SettingFormat(re.compile(rf"(?:{TOPIC.pattern.pattern})?"), f"empty, or {TOPIC.allowed}")
INSTANCE = SettingFormat(
    DEFAULT_TOPIC.pattern, f"empty, or up to {TOPIC_CHARACTERS_MAX} letters, digits, dots, underscores and dashes"
)
GROUP = SettingFormat(re.compile(r"\S(?:.{0,253}\S)?"), "1 to 255 characters, without spaces around them")
BUCKET = SettingFormat(
    re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]"),
    "3 to 222 lower-case letters, digits, dots, underscores and dashes, as Cloud Storage names buckets",
)
PROJECT = SettingFormat(
    re.compile(r"[a-z0-9][a-z0-9.:-]{0,98}"),
    "a Google Cloud project id: lower-case letters, digits and dashes, prefixed with example.com: for a domain",
)
LOCATION = SettingFormat(re.compile(r"[A-Za-z0-9-]{0,64}"), "empty, or a location such as EU or europe-west1")
HOST = SettingFormat(HOST_PATTERN, "a host name or an IP address, without scheme and port")
USER = SettingFormat(re.compile(r"(?:\S(?:.{0,253}\S)?)?"), "up to 255 characters, without spaces around them")

SOCKET = SettingFormat(
    re.compile(r"(?:(?:(?:unix|unixgram|unixstream)://)?/\S+)?"),
    "empty, or an absolute path, optionally prefixed with unix://, unixgram:// or unixstream://",
)

_ADDRESS = r"[^\s@|*^$()\[\]{}\\]+@[A-Za-z0-9.-]+"
# Flower compares addresses literally, except for one `.*`; in any other pattern, no address would match.
EMAILS = SettingFormat(
    re.compile(rf"(?:{_ADDRESS}(?:\|{_ADDRESS})*|[^\s@|*^$()\[\]{{}}\\]*\.\*@[A-Za-z0-9.-]+)?"),
    "addresses separated by |, or .*@example.com for all addresses of a domain",
)

FORMS: Mapping[str, SettingFormat] = {
    "bigquery_location": LOCATION,
    "bigquery_project": PROJECT,
    "clickhouse_user": USER,
    "datadog_host": HOST,
    "datadog_socket": SOCKET,
    "dead_letter_topic": DEFAULT_TOPIC,
    "flower_host": HOST,
    "flower_oauth_emails": EMAILS,
    "flower_oauth_key": USER,
    "gcs_bucket": BUCKET,
    "gcs_location": LOCATION,
    "gcs_project": PROJECT,
    "http_host": HOST,
    "kafka_group": GROUP,
    "kafka_instance_id": INSTANCE,
    "kafka_operators_topic": DEFAULT_TOPIC,
    "kafka_sasl_username": USER,
    "kafka_topic": TOPIC,
    "redis_sentinel_username": USER,
    "worker_http_host": HOST,
}
"""The allowed form of each setting that is a name."""

BLANK_NOT_ALLOWED = frozenset(
    (
        "clickhouse_password",
        "flower_basic_auth",
        "flower_oauth_secret",
        "kafka_sasl_password",
        "redis_sentinel_password",
        "shared_key",
    )
)
"""Settings, mostly secrets, whose value may have any form but must not consist of spaces only."""

SEVERAL_LINES = frozenset(("shared_key",))
"""Settings that may span several lines: secrets mounted from a file, with one key per line."""


def check(name: str, text: str) -> None:
    """Raises ValueError, which states the allowed form, if the text is not valid for this setting."""
    if any(0xD800 <= ord(character) <= 0xDFFF for character in text):
        raise ValueError("not UTF-8: correct its encoding")
    if name not in SEVERAL_LINES and any(
        ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0 for character in text
    ):
        raise ValueError("contains a line break or another control character: remove it")
    if name in BLANK_NOT_ALLOWED and text and not text.strip():
        raise ValueError("consists only of spaces: remove them")
    form = FORMS.get(name)
    if form is not None and form.pattern.fullmatch(text) is None:
        raise ValueError(f"not allowed here; allowed: {form.allowed}")
