"""Faults of Kafka, from the errors that librdkafka reports asynchronously.

If brokers refuse a password or a connection, a call to the library only times out, and the reason is reported to
the client's error callback. `list_topics` therefore makes several calls with short timeouts, and checks the
reported errors after each call.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from tasks.errors import shortened
from tasks.faults import Cause, Fault, Server, fault

LOGIN = frozenset((KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED))
RIGHTS = frozenset((KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED))
REFUSED = LOGIN | RIGHTS | {KafkaError.UNSUPPORTED_SASL_MECHANISM, KafkaError._SSL}
# No broker is connected, or a broker does not respond. These codes alone do not state a reason.
UNCONNECTED = frozenset(
    (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT, KafkaError._RESOLVE)
)

# The first timeouts are short, so that a refusal is noticed early; later timeouts allow for slow brokers.
ATTEMPT_SECONDS_MIN, ATTEMPT_SECONDS_MAX = 0.25, 2.0
REASONS_MAX = 2
ERRORS_MAX = 100

_MECHANISM = re.compile(r"mechanism handshake failed|Unsupported SASL mechanism", re.IGNORECASE)
# The errors that a client gets if its security protocol differs from the broker's.
_OTHER_PROTOCOL = re.compile(r"security\.protocol|SSL handshake|Disconnected|closed by peer", re.IGNORECASE)
# `host:port/bootstrap: ` before a reason, ` (after 5ms in state CONNECT)` after it.
_PLACE = re.compile(r"^(?:\w+://)?[^ /]+:\d+/\w+: ")
_STATE = re.compile(r" \(after \d+ms in state .*$")


class ClientErrors:
    """The errors of one client, in order of arrival. `note` is the client's error callback, and this
    object is also the client's logger, because some causes are only logged.
    """

    def __init__(self) -> None:
        self._errors: list[KafkaError] = []
        self._lines: list[str] = []

    def log(self, level: int, text: str, *arguments: Any) -> None:
        """Stores a log line from librdkafka. The last ERRORS_MAX are kept."""
        line = text % arguments if arguments else text
        self._lines.append(line.rpartition("]: ")[2])
        del self._lines[:-ERRORS_MAX]

    def note(self, error: KafkaError) -> None:
        """Adds an error. The last ERRORS_MAX are kept."""
        self._errors.append(error)
        del self._errors[:-ERRORS_MAX]

    def refused(self) -> bool:
        """Returns whether a broker responded but refused the client, in which case a retry cannot help."""
        return any(error.code() in REFUSED for error in self._errors)

    def down(self) -> bool:
        """Returns whether the client reported that it is not connected to any broker."""
        return any(error.code() == KafkaError._ALL_BROKERS_DOWN for error in self._errors)

    def fault(self, brokers: str, failure: KafkaError | None = None) -> Fault:
        """Returns the fault that these errors, and the error of a call, describe."""
        return fault_of(brokers, [*self._errors, *([failure] if failure is not None else [])], self._lines)


def list_topics(
    client: Any,
    errors: ClientErrors,
    seconds_max: float,
    *,
    topic: str | None = None,
    down_seconds_max: float = math.inf,
) -> Any:
    """Returns the client's metadata. Raises KafkaException after `seconds_max`, or as soon as a broker refuses the
    client.

    `down_seconds_max`: after this time, the client's report that it is not connected to any broker counts as a
    failure too.
    """
    began = time.monotonic()
    attempt_seconds = ATTEMPT_SECONDS_MIN
    while True:
        limit_seconds = min(seconds_max, down_seconds_max) if errors.down() else seconds_max
        remaining_seconds = max(ATTEMPT_SECONDS_MIN, began + limit_seconds - time.monotonic())
        try:
            return client.list_topics(topic, timeout=min(attempt_seconds, remaining_seconds))
        except KafkaException:
            client.poll(0)  # serves the error callback
            passed_seconds = time.monotonic() - began
            down = errors.down() and passed_seconds >= down_seconds_max
            if down or errors.refused() or passed_seconds >= seconds_max:
                raise
        attempt_seconds = min(ATTEMPT_SECONDS_MAX, 2 * attempt_seconds)


def fault_of(brokers: str, errors: Iterable[KafkaError], lines: Iterable[str] = ()) -> Fault:
    """Returns the fault that these errors describe. A refusal takes precedence over a lost connection.

    `lines`: log lines of the library, which are used if no error states a reason.
    """
    found = list(errors)
    for error in found:
        if error.code() in REFUSED:
            return fault(Server.KAFKA, _cause(error), f"{brokers} refuses the client: {_reason(error.str())}")
    reasons = list(dict.fromkeys(_reason(error.str()) for error in found if _has_reason(error)))
    reasons = reasons or list(dict.fromkeys(map(_reason, lines)))
    why = f": {'; '.join(reasons[:REASONS_MAX])}" if reasons else ""
    silent = not reasons or any(_OTHER_PROTOCOL.search(reason) for reason in reasons)
    cause = Cause.SILENT if silent else Cause.UNREACHABLE
    return fault(Server.KAFKA, cause, shortened(f"{brokers} does not respond{why}"))


def _cause(error: KafkaError) -> Cause:
    if error.code() in RIGHTS:
        return Cause.RIGHTS
    if error.code() == KafkaError._SSL:
        return Cause.ENCRYPTION
    mechanism = error.code() == KafkaError.UNSUPPORTED_SASL_MECHANISM or _MECHANISM.search(error.str())
    return Cause.MECHANISM if mechanism else Cause.LOGIN


def _has_reason(error: KafkaError) -> bool:
    """Returns whether the error states a reason, and not only that no broker is connected."""
    return error.code() not in (KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT) and bool(
        _PLACE.match(error.str()) or error.code() not in UNCONNECTED
    )


def _reason(text: str) -> str:
    """Returns librdkafka's text without the broker address, which the reported fault already contains, and without
    the connection state.
    """
    return shortened(_STATE.sub("", _PLACE.sub("", text)))
