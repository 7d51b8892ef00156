"""librdkafka properties from the settings, for every Kafka client.

The dict contains the password in plain text; use `without_secrets` for logs.
"""

from __future__ import annotations

from typing import Any

from tasks.settings import Settings
from tasks.units import KiB, MiB

CLIENT_ID = "replays-ingest"
SECRET_WORDS = ("password", "secret", "key.pem", "jaas", "token", "oauthbearer.config")
REDACTED = "***"
PRODUCED_BYTES_MAX = 64 * MiB
QUEUED_MESSAGES_MAX = 10_000


def kafka_options(settings: Settings) -> dict[str, Any]:
    """Returns the properties for addresses, TLS and SASL, overridden by the operator's properties.

    With OAUTHBEARER and no token callback, librdkafka fetches tokens itself: endpoint, client id and secret come
    from `kafka_options` (sasl.oauthbearer.method=oidc and its related properties).
    """
    options: dict[str, Any] = {
        "bootstrap.servers": settings.kafka_brokers,
        "client.id": CLIENT_ID,
        "security.protocol": settings.kafka_security_protocol,
        # Without keepalive, load balancers and NAT gateways silently drop idle connections.
        "socket.keepalive.enable": True,
    }
    wanted = {
        "sasl.mechanism": settings.kafka_sasl_mechanism,
        "sasl.username": settings.kafka_sasl_username,
        "sasl.password": settings.kafka_sasl_password.get_secret_value(),
        "ssl.ca.location": settings.kafka_ssl_ca_file,
        "ssl.certificate.location": settings.kafka_ssl_certificate_file,
        "ssl.key.location": settings.kafka_ssl_key_file,
    }
    options |= {name: str(value) for name, value in wanted.items() if value}
    return options | settings.kafka_options


def is_plain(settings: Settings) -> bool:
    """Returns True if `tasks.kafka.usable` has nothing to verify: no operator options, no TLS, no SASL."""
    return not settings.kafka_options and settings.kafka_security_protocol == "PLAINTEXT"


def producer_options(settings: Settings) -> dict[str, Any]:
    """Returns the librdkafka properties of the producers for dead letters, replayed dead letters and operators'
    decisions. Operators cannot override the properties that ensure durable writes (acks, idempotence).
    """
    return {
        "linger.ms": 5,
        "compression.type": "lz4",
        "message.max.bytes": PRODUCED_BYTES_MAX,
        "queue.buffering.max.kbytes": PRODUCED_BYTES_MAX // KiB + 1,
        "queue.buffering.max.messages": QUEUED_MESSAGES_MAX,
        "delivery.timeout.ms": int(settings.sink_timeout_seconds * 1000),
        **kafka_options(settings),
        "acks": "all",
        "enable.idempotence": True,
        # Statistics are disabled, because they would accumulate in an idle producer that is not polled.
        "statistics.interval.ms": 0,
    }


def without_secrets(options: dict[str, Any]) -> dict[str, Any]:
    """Returns these properties without secrets, for logs."""
    return {
        name: REDACTED if any(word in name for word in SECRET_WORDS) else value for name, value in options.items()
    }
