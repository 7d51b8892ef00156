"""Tests how Kafka clients are configured: encryption, authentication, and an operator's own properties."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from confluent_kafka import Consumer

from ingest.local.servers.tls import make_certificates
from ingest.reader.configuration import consumer_config
from ingest.settings import Settings
from tasks.kafka.options import REDACTED, kafka_options, producer_options, without_secrets


def settings(monkeypatch: pytest.MonkeyPatch, **values: str) -> Settings:
    for name, value in values.items():
        monkeypatch.setenv(f"REPLAYS_{name.upper()}", value)
    return Settings()


def test_scram_over_tls_is_four_settings(monkeypatch: pytest.MonkeyPatch):
    """SCRAM over TLS needs four settings, and only the corresponding properties are set."""
    options = kafka_options(
        settings(
            monkeypatch,
            kafka_brokers="kafka:9093",
            kafka_security_protocol="SASL_SSL",
            kafka_sasl_mechanism="SCRAM-SHA-512",
            kafka_sasl_username="replays",
            kafka_sasl_password="secret",
        )
    )

    assert options == {
        "bootstrap.servers": "kafka:9093",
        "client.id": "replays-ingest",
        "security.protocol": "SASL_SSL",
        "socket.keepalive.enable": True,
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "replays",
        "sasl.password": "secret",
    }


def test_mutual_tls_is_three_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Mutual TLS needs three settings: the paths of the CA file, our certificate and the certificate's key, all of
    which librdkafka reads.
    """
    made = make_certificates(tmp_path)
    options = kafka_options(
        settings(
            monkeypatch,
            kafka_security_protocol="SSL",
            kafka_ssl_ca_file=str(made.ca),
            kafka_ssl_certificate_file=str(made.client_certificate),
            kafka_ssl_key_file=str(made.client_key),
        )
    )

    assert options["ssl.ca.location"] == str(made.ca)
    assert options["ssl.certificate.location"] == str(made.client_certificate)
    assert options["ssl.key.location"] == str(made.client_key)
    assert "sasl.mechanism" not in options


def test_oauth_options_reach_reader_and_dead_letters(monkeypatch: pytest.MonkeyPatch):
    """OAuth options reach the reader's consumer and the dead-letter producer unchanged, and the installed
    librdkafka supports the OAuth method `oidc`.
    """
    further = {
        "sasl.oauthbearer.method": "oidc",
        "sasl.oauthbearer.client.id": "ingest",
        "sasl.oauthbearer.client.secret": "oauth-secret",
        "sasl.oauthbearer.token.endpoint.url": "https://login.example.com/token",
    }
    made = settings(
        monkeypatch,
        kafka_security_protocol="SASL_SSL",
        kafka_sasl_mechanism="OAUTHBEARER",
        kafka_options=json.dumps(further),
    )

    for options in (consumer_config(made), producer_options(made)):
        assert further.items() <= options.items()
        assert options["sasl.mechanism"] == "OAUTHBEARER"
    Consumer(consumer_config(made)).close()


def test_printed_options_hold_no_secret(monkeypatch: pytest.MonkeyPatch):
    """If the options are printed, neither the password nor the values of the operator's properties are shown."""
    made = settings(
        monkeypatch,
        kafka_sasl_password="hunter2",
        kafka_options=json.dumps({"sasl.oauthbearer.client.secret": "hunter3", "linger.ms": "1"}),
    )

    printed = without_secrets(kafka_options(made))

    assert "hunter" not in repr(printed)
    assert printed["sasl.password"] == REDACTED
    assert printed["linger.ms"] == "1"


def test_the_operators_properties_take_precedence(monkeypatch: pytest.MonkeyPatch):
    made = settings(monkeypatch, kafka_options=json.dumps({"socket.keepalive.enable": "false"}))

    assert kafka_options(made)["socket.keepalive.enable"] == "false"
