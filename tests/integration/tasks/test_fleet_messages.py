"""Celery messages are JSON, optionally signed, and are unchanged after encoding and decoding; workers refuse other
formats.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery, chord
from kombu.serialization import dumps, loads, registry

from ingest.core import events as on
from ingest.core.model import Stage
from tasks.chord import publisher
from tasks.configuration import configuration
from tests.kit.batches import make_batch
from tests.kit.fleet import Fleet


@pytest.mark.parametrize(
    "name", ["flush_gcs", "flush_clickhouse", "flush_bigquery", "flush_datadog", "flush_dead_letter"]
)
def test_every_flush_signature_survives_json(fleet: Fleet, name: str) -> None:
    """Every signature that `start` creates is unchanged after it is encoded as JSON and decoded by the worker."""
    app = publisher(fleet.settings)
    kwargs = {"batch": "recordings-0-0-3:digest", "task": "rows/clickhouse/0", "until": 1_700_000_000}
    complete = app.signature("complete", immutable=True, link_error=[app.signature("chord_failed")])
    signature = chord([app.signature(name, kwargs=kwargs, immutable=True)], complete, app=app)

    content_type, encoding, body = dumps(signature, serializer="json")

    assert json.loads(body) == json.loads(json.dumps(signature))
    assert loads(body, content_type, encoding, accept={"application/json"}) == json.loads(body)
    assert json.loads(body)["kwargs"]["header"][0]["kwargs"] == kwargs


def test_a_pickled_message_is_refused(fleet: Fleet) -> None:
    """A worker refuses a pickled message: it logs the message, does not load it, and continues."""
    worker = fleet.worker()
    evil = Celery("evil", set_as_current=False)
    evil.conf.update(configuration(fleet.settings), task_serializer="pickle", accept_content=["pickle", "json"])

    evil.send_task("retry_batch", args=["x"], queue="control")

    fleet.wait(lambda: b"ContentDisallowed" in worker.log_path.read_bytes(), "the refusal")
    assert isinstance(fleet.settle(fleet.dispatcher(), make_batch(), Stage.BLOBS), on.FlushSucceeded)


class TestSigned:
    """A fleet with a private key, a certificate and a store of trusted certificates."""

    @pytest.fixture
    def fleet_options(self, tmp_path: Path) -> Iterator[dict[str, str]]:
        """Configures a key with a self-signed certificate that the fleet trusts.

        Signing applies to a whole process, so it is disabled afterwards.
        """
        pytest.importorskip("cryptography")
        key, certificate = make_certificate()
        (tmp_path / "keys").mkdir()
        (tmp_path / "keys" / "fleet.key").write_bytes(key)
        (tmp_path / "keys" / "fleet.pem").write_bytes(certificate)
        yield {
            "TASK_SECURITY_KEY_FILE": str(tmp_path / "keys" / "fleet.key"),
            "TASK_SECURITY_CERTIFICATE_FILE": str(tmp_path / "keys" / "fleet.pem"),
            "TASK_SECURITY_STORE": str(tmp_path / "keys" / "*.pem"),
        }
        registry.enable("json")
        registry._set_default_serializer("json")

    def test_signed_messages_complete_and_unsigned_ones_are_refused(self, fleet: Fleet) -> None:
        """If messages must be signed, a client that can write to Redis but has no key cannot run tasks."""
        worker = fleet.worker()
        dispatcher = fleet.dispatcher()

        signed = fleet.settle(dispatcher, make_batch(), Stage.ROWS)
        unsigned = Celery("stranger", set_as_current=False)
        unsigned.conf.update(configuration(fleet.settings))
        unsigned.send_task("retry_batch", args=["x"], queue="control", serializer="json")
        fleet.wait(lambda: b"ContentDisallowed" in worker.log_path.read_bytes(), "the refusal")

        assert isinstance(signed, on.FlushSucceeded)


def make_certificate() -> tuple[bytes, bytes]:
    """Returns a private key and its self-signed certificate, both as PEM."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.x509.oid import NameOID

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fleet")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    return pem, certificate.public_bytes(serialization.Encoding.PEM)
