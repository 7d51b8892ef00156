"""Validates addresses in settings.

Each function raises ValueError if the address is invalid. The message states the expected form, but never repeats
the address, which may contain a password.
"""

from __future__ import annotations

import re
from urllib.parse import SplitResult, urlsplit

PORT_MAX = 65_535
BROKER_SCHEMES = ("plaintext", "ssl", "sasl_plaintext", "sasl_ssl")  # librdkafka accepts these schemes as a prefix


HOST = re.compile(r"[A-Za-z0-9._:%-]{1,255}")
"""Matches host names and IPv4 and IPv6 addresses. An internationalized name must be in its xn-- form."""


def http_url(text: str, *, credentials: str = "") -> SplitResult:
    """`http://host[:port][/path]`, or https. `credentials` names the settings that replace a user and password in
    the URL.
    """
    url = _split(text)
    if url is None or url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError("is not of the form http://host[:port][/path], or https:// for TLS")
    if url.username is not None or url.password is not None:
        raise ValueError(f"contains a user or password, which is ignored: {credentials or 'remove them'}")
    if url.query or url.fragment:
        raise ValueError("contains options after ? or #, which are ignored: remove them")
    return url


def brokers(text: str) -> None:
    """Validates one or more `host[:port]`, separated by commas."""
    for entry in text.split(","):
        scheme, separator, rest = entry.strip().rpartition("://")
        url = _split(f"kafka://{rest}")
        wrong_scheme = separator and scheme.lower() not in BROKER_SCHEMES
        if wrong_scheme or url is None or not url.hostname or url.path or url.username is not None:
            raise ValueError("is not of the form host:port, several with commas")


def _split(text: str) -> SplitResult | None:
    """Splits an address. Returns None if the address has an invalid port, an unclosed bracket, a space, or an
    invalid host."""
    if any(character.isspace() or not character.isprintable() for character in text):
        return None
    try:
        url = urlsplit(text)
        wrong_port = url.port is not None and not 0 < url.port <= PORT_MAX
        wrong_host = url.hostname is not None and HOST.fullmatch(url.hostname) is None
        return None if wrong_port or wrong_host else url
    except ValueError:
        return None
