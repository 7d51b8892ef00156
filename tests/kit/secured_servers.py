"""Servers that require encryption and authentication, and the system's processes connected to them."""

from __future__ import annotations

import base64
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from redis import Redis as Client

from ingest.local.servers.java_kafka import JavaKafka
from ingest.local.servers.processes import HOST, Children, free_port, wait_until
from ingest.local.servers.redis import Redis
from ingest.local.servers.tls import Certificates, TlsProxy
from tests.kit.paths import ROOT

USERS = ROOT / "deploy" / "redis" / "users.acl"
REDIS_PASSWORD = "CHANGE-ME"
KAFKA_USER = "replays"
KAFKA_PASSWORD = "scram-secret-of-this-test"
AUTHORIZED = {
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    # The user of the plaintext listener: the test itself, acting as the cluster's administrator.
    "super.users": "User:ANONYMOUS",
}

# The operations that docs/hardening.md lists for each kind of resource.
READER_TOPIC_RIGHTS = ("READ", "DESCRIBE")
LETTER_TOPIC_RIGHTS = ("READ", "WRITE", "DESCRIBE", "DESCRIBE_CONFIGS")
DECISION_TOPIC_RIGHTS = ("READ", "WRITE", "DESCRIBE")
GROUP_RIGHTS = ("READ",)


def kafka_variables(server: JavaKafka, mechanism: str = "SCRAM-SHA-512") -> dict[str, str]:
    """Returns the REPLAYS_* variables for a user of the listener with SASL and TLS."""
    assert server.certificates is not None
    return {
        "REPLAYS_KAFKA_BROKERS": server.secure_address,
        "REPLAYS_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
        "REPLAYS_KAFKA_SASL_MECHANISM": mechanism,
        "REPLAYS_KAFKA_SASL_USERNAME": KAFKA_USER,
        "REPLAYS_KAFKA_SASL_PASSWORD": KAFKA_PASSWORD,
        "REPLAYS_KAFKA_SSL_CA_FILE": str(server.certificates.ca),
    }


def grant(server: JavaKafka, topic: str, group: str) -> None:
    """Grants the user the permissions listed in docs/hardening.md, and no others."""
    admin = AdminClient({"bootstrap.servers": server.address})
    wanted: list[tuple[Any, str, Any, tuple[str, ...]]]
    wanted = [(ResourceType.TOPIC, topic, ResourcePatternType.LITERAL, READER_TOPIC_RIGHTS)]
    wanted += [(ResourceType.TOPIC, f"{topic}-dlq", ResourcePatternType.LITERAL, LETTER_TOPIC_RIGHTS)]
    wanted += [(ResourceType.TOPIC, f"{topic}-operators", ResourcePatternType.LITERAL, DECISION_TOPIC_RIGHTS)]
    # These names are prefixes: `dlq` and `reconcile` use groups whose names begin with the name of the readers'
    # group.
    wanted += [(ResourceType.GROUP, group, ResourcePatternType.PREFIXED, GROUP_RIGHTS)]
    bindings = [
        AclBinding(
            kind, name, pattern, f"User:{KAFKA_USER}", "*", AclOperation[operation], AclPermissionType.ALLOW
        )
        for kind, name, pattern, operations in wanted
        for operation in operations
    ]
    for future in admin.create_acls(bindings).values():
        future.result(20)
    # The controller has answered, but the broker reads the change from the metadata log with a short delay.
    names = sorted((kind.name, name) for kind, name, _, operations in wanted for _ in operations)
    wait_until(lambda: _granted(admin, {name for _, name in names}) == names, 20, "the broker to know the rights")


def _granted(admin: AdminClient, names: set[str]) -> list[tuple[str, str]]:
    """Returns (resource kind, resource name) for each ACL entry that the broker reports for the given resource
    names.
    """
    anything: Any = None
    everything = AclBindingFilter(
        ResourceType.ANY,
        anything,
        ResourcePatternType.ANY,
        anything,
        anything,
        AclOperation.ANY,
        AclPermissionType.ANY,
    )
    found = admin.describe_acls(everything, request_timeout=10).result(20)
    return sorted((binding.restype.name, binding.name) for binding in found if binding.name in names)


@dataclass(frozen=True, slots=True)
class GuardedRedis:
    """Redis with deploy/redis/users.acl behind TLS: the system's URL, and an administrator's client."""

    url: str
    keeper: Any
    ca: Path

    @property
    def variables(self) -> dict[str, str]:
        return {"REPLAYS_REDIS_URL": self.url, "REPLAYS_REDIS_TLS_CA_FILE": str(self.ca)}


@contextmanager
def guarded_redis(children: Children, directory: Path, certificates: Certificates) -> Iterator[GuardedRedis]:
    """Redis with the deployed access list and one more user, who may read the server's ACL log."""
    directory.mkdir(parents=True)
    users = directory / "users.acl"
    users.write_text(USERS.read_text() + "user keeper on nopass ~* &* +@all\n")
    server = Redis(children, directory / "redis", acl_file=users)
    server.start()
    keeper: Any = Client.from_url(server.address.replace("redis://", "redis://keeper:x@"))
    with TlsProxy(server.port, certificates) as proxy:
        url = f"rediss://replays:{REDIS_PASSWORD}@{HOST}:{proxy.port}/0"
        yield GuardedRedis(url, keeper, certificates.ca)


@contextmanager
def token_endpoint(subject: str, seconds: float = 300) -> Iterator[tuple[str, list[str]]]:
    """Runs an OAuth server for the client-credentials grant; yields its URL and the Authorization headers that it
    received.

    The server's tokens are unsigned; the broker in these tests accepts unsigned tokens.
    """
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            seen.append(self.headers.get("Authorization", ""))
            now = time.time()
            claims = {"sub": subject, "iat": int(now), "exp": int(now + seconds), "scope": "kafka"}
            token = f"{_part({'alg': 'none'})}.{_part(claims)}."
            answer = json.dumps(
                {"access_token": token, "token_type": "Bearer", "expires_in": int(seconds)}
            ).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer((HOST, 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://{HOST}:{server.server_address[1]}/token", seen
    finally:
        server.shutdown()
        server.server_close()


def _part(value: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


@dataclass(frozen=True, slots=True)
class Programs:
    """The reader, the worker and Flower as processes with the given environment variables."""

    children: Children
    env: dict[str, str]

    def start(self) -> str:
        """Starts all three programs and returns Flower's URL."""
        port = free_port()
        env = self.env | {"REPLAYS_FLOWER_BASIC_AUTH": "test:only-for-now", "REPLAYS_FLOWER_PORT": str(port)}
        celery = [sys.executable, "-m", "celery", "-A", "tasks"]
        self.children.start("worker", [*celery, "worker", "-c", "2", "-n", "w@%h"], env=env, cwd=ROOT)
        self.children.start("flower", [*celery, "flower"], env=env, cwd=ROOT)
        self.children.start("reader", [sys.executable, "-m", "ingest.cli"], env=env, cwd=ROOT)
        return f"http://{HOST}:{port}"

    def stop(self) -> None:
        """Stops the programs gracefully, while their servers still run."""
        for child in reversed([child for child in self.children if child.name in ("worker", "flower", "reader")]):
            child.stop()

    def logs(self) -> str:
        """Returns everything that the programs logged."""
        return "\n".join(child.log_path.read_text("utf-8", "replace") for child in self.children)
