"""Apache Kafka: one KRaft node on the loopback interface, from the jars on Maven Central.

`mvn` downloads the jars once into the user's cache (about 45 MB). The jars need Java 17 or later. Use this server
where Tansu differs from Kafka: rebalances, commit metadata, read_committed, retention, restarts with data, SASL
and TLS. `available()` returns the reason if Apache Kafka cannot run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import uuid
import zlib
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from ingest.local.servers.base import Server
from ingest.local.servers.kafka import answers_metadata
from ingest.local.servers.processes import HOST, Children, LocalError, free_port, private_directory
from ingest.local.servers.tls import Certificates, make_certificates
from tasks.units import MiB

KAFKA_VERSION = "4.3.1"
JAVA_VERSION_MIN = 17
CACHE_VARIABLE = "REPLAYS_LOCAL_KAFKA_CACHE"
FETCH_SECONDS_MAX = 300
FORMAT_SECONDS_MAX = 60
HEAP = ("-Xms128m", "-Xmx512m")
# The JVM is started often and runs for a few minutes at most. Using only the C1 compiler halves its startup time.
FAST_START_OPTIONS = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto")

SCRAM = ("SCRAM-SHA-256", "SCRAM-SHA-512")
SecurityProtocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]

POM = """<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>local</groupId><artifactId>kafka</artifactId><version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{version}</version>
    </dependency>
    <dependency>
      <groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId><version>2.25.4</version>
    </dependency>
  </dependencies>
</project>
"""

# The root logger at WARN is enough to show the reason for a failed start.
LOG4J = """Configuration:
  status: ERROR
  Appenders:
    Console:
      name: out
      PatternLayout:
        pattern: "%d %p %c{1} %m%n"
  Loggers:
    Root:
      level: WARN
      AppenderRef:
        ref: out
"""


def cache_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """Returns the directory in which the jars are cached."""
    base = environ.get(CACHE_VARIABLE)
    if base:
        return Path(base)
    home = environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "replays-ingest" / f"kafka-{KAFKA_VERSION}"


def available() -> str:
    """Returns an empty string if Apache Kafka can run here, otherwise the reason in one sentence."""
    java = shutil.which("java")
    if java is None:
        return "Java is not installed"
    version = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'version "(\d+)', version)
    if found is None or int(found[1]) < JAVA_VERSION_MIN:
        return f"Java {JAVA_VERSION_MIN} or later is required, found: {version.splitlines()[:1]}"
    if not _complete(cache_directory()).exists() and shutil.which("mvn") is None:
        return f"mvn is not installed and {cache_directory()} does not contain the jars"
    return ""


def _complete(cache: Path) -> Path:
    """Returns the marker file of a completed fetch. The name of the file depends on the list of jars."""
    return cache / f"complete-{zlib.crc32(POM.encode()):08x}"


def fetch() -> Path:
    """Returns the folder with the jars, which mvn downloads if needed.

    Raises LocalError with the output of mvn.
    """
    reason = available()
    if reason:
        raise LocalError(f"Apache Kafka cannot run here: {reason}")
    cache = cache_directory()
    if _complete(cache).exists():
        return cache / "libs"
    cache.mkdir(parents=True, exist_ok=True)
    # Several processes may download the jars at the same time. Each process uses its own folder, and the first
    # complete folder is kept.
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        pom = Path(scratch) / "pom.xml"
        pom.write_text(POM.format(version=KAFKA_VERSION))
        libs = Path(scratch) / "libs"
        options = ["-DincludeScope=runtime", f"-DoutputDirectory={libs}"]
        command = ["mvn", "-q", "-B", "-f", str(pom), "dependency:copy-dependencies", *options]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_SECONDS_MAX, check=False)
        except subprocess.TimeoutExpired:
            raise LocalError(f"mvn did not fetch Apache Kafka within {FETCH_SECONDS_MAX} s") from None
        if done.returncode != 0 or not any(libs.glob("kafka_2.13-*.jar")):
            raise LocalError(f"mvn could not fetch Apache Kafka:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        if not _complete(cache).exists():
            shutil.rmtree(cache / "libs", ignore_errors=True)
            libs.rename(cache / "libs")
            _complete(cache).touch()
    return cache / "libs"


class JavaKafka(Server):
    """A Kafka broker and controller in one JVM. The broker keeps its data when it is restarted or killed.

    `security` adds a second listener of that kind, besides the plain one; see `secure_address` and
    `client_options`. SASL supports PLAIN and SCRAM; `users` maps each name to its password. `unsigned_tokens` adds
    OAUTHBEARER and accepts any token, to test how tokens are fetched and sent.
    """

    name: ClassVar[str] = "kafka"
    start_seconds_max: ClassVar[float] = 60.0

    def __init__(
        self,
        children: Children,
        directory: Path,
        *,
        name: str = "",
        port: int = 0,
        security: SecurityProtocol = "PLAINTEXT",
        users: Mapping[str, str] | None = None,
        unsigned_tokens: bool = False,
        options: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(children, directory, name=name, port=port)
        self.security: SecurityProtocol = security
        self.users = dict(users or {"replays": "replays-secret"})
        self.unsigned_tokens = unsigned_tokens
        self.options = dict(options or {})
        self.certificates: Certificates | None = None
        self._controller_port = 0
        self._secure_port = 0

    @property
    def address(self) -> str:
        """The bootstrap.servers value of the plain listener."""
        return f"{HOST}:{self.port}"

    @property
    def secure_address(self) -> str:
        """The bootstrap.servers value of the listener with TLS or SASL."""
        return f"{HOST}:{self._secure_port}"

    @property
    def client_options(self) -> dict[str, str]:
        """The librdkafka properties for connecting to `secure_address`.

        With SASL, they contain the credentials of the first user in `users`.
        """
        found = {"bootstrap.servers": self.secure_address, "security.protocol": self.security}
        if "SASL" in self.security:
            user, password = next(iter(self.users.items()))
            found |= {"sasl.mechanism": "SCRAM-SHA-256", "sasl.username": user, "sasl.password": password}
        if self.certificates is not None:
            found["ssl.ca.location"] = str(self.certificates.ca)
        return found

    def start(self) -> None:
        """Downloads the jars if needed, formats the data directory once, and runs the broker."""
        fetch()
        private_directory(self.directory)
        if self.security.endswith("SSL") and self.certificates is None:
            self.certificates = make_certificates(self.directory / "certificates")
        super().start()

    def command(self) -> list[str]:
        """Returns the command line.

        Rewrites server.properties for each port that is tried, but formats the directory only once.
        """
        self._controller_port = self._controller_port or free_port()
        if self.security != "PLAINTEXT":
            self._secure_port = self._secure_port or free_port()
        (self.directory / "log4j2.yaml").write_text(LOG4J)
        properties = self.directory / "server.properties"
        properties.write_text("".join(f"{key}={value}\n" for key, value in self.properties().items()))
        if not (self.directory / "data" / "meta.properties").exists():
            self._format(properties)
        return [*self._java(), "kafka.Kafka", str(properties)]

    def is_ready(self) -> bool:
        """Returns whether the broker responds to a metadata request."""
        return answers_metadata(self.address)

    def properties(self) -> dict[str, str]:
        """Returns the broker's server.properties, with small thread pools and no startup delays, because the
        broker shares the machine and is the only node of its cluster.
        """
        listeners = [f"PLAINTEXT://{HOST}:{self.port}", f"CONTROLLER://{HOST}:{self._controller_port}"]
        protocols = ["PLAINTEXT:PLAINTEXT", "CONTROLLER:PLAINTEXT"]
        advertised = [f"PLAINTEXT://{HOST}:{self.port}"]
        if self.security != "PLAINTEXT":
            listeners.append(f"SECURE://{HOST}:{self._secure_port}")
            advertised.append(f"SECURE://{HOST}:{self._secure_port}")
            protocols.append(f"SECURE:{self.security}")
        return {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.bootstrap.servers": f"{HOST}:{self._controller_port}",
            "listeners": ",".join(listeners),
            "advertised.listeners": ",".join(advertised),
            "listener.security.protocol.map": ",".join(protocols),
            "inter.broker.listener.name": "PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": str(self.directory / "data"),
            "num.partitions": "4",
            "offsets.topic.num.partitions": "4",
            "offsets.topic.replication.factor": "1",
            "transaction.state.log.num.partitions": "4",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "share.coordinator.state.topic.num.partitions": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            "group.min.session.timeout.ms": "1000",
            # With the group protocol `consumer`, the broker sets the session timeout, by default 45 s.
            "group.consumer.session.timeout.ms": "6000",
            "group.consumer.min.session.timeout.ms": "1000",
            "group.consumer.heartbeat.interval.ms": "1000",
            "group.consumer.min.heartbeat.interval.ms": "500",
            # A killed broker cannot rejoin until its old session expires, by default after 9 s.
            "broker.session.timeout.ms": "2000",
            "broker.heartbeat.interval.ms": "500",
            "message.max.bytes": str(16 * MiB),
            "auto.create.topics.enable": "false",
            "num.network.threads": "2",
            "num.io.threads": "2",
            "background.threads": "2",
            "log.cleaner.dedupe.buffer.size": str(8 * MiB),
            **self._secure_properties(),
            **self.options,
        }

    def _secure_properties(self) -> dict[str, str]:
        if self.security == "PLAINTEXT":
            return {}
        found: dict[str, str] = {}
        if self.certificates is not None:
            found |= {
                "ssl.keystore.type": "PEM",
                "ssl.keystore.location": str(self.certificates.server),
                "ssl.truststore.type": "PEM",
                "ssl.truststore.location": str(self.certificates.ca),
                "ssl.client.auth": "requested",
            }
        if "SASL" in self.security:
            accounts = "".join(f' user_{user}="{password}"' for user, password in self.users.items())
            prefix = "listener.name.secure"
            found |= {
                "sasl.enabled.mechanisms": ",".join(("PLAIN", *SCRAM)),
                f"{prefix}.plain.sasl.jaas.config": (
                    f"org.apache.kafka.common.security.plain.PlainLoginModule required{accounts};"
                ),
            }
            for mechanism in SCRAM:
                module = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
                found[f"{prefix}.{mechanism.lower()}.sasl.jaas.config"] = module
            if self.unsigned_tokens:
                found["sasl.enabled.mechanisms"] += ",OAUTHBEARER"
                found[f"{prefix}.oauthbearer.sasl.jaas.config"] = (
                    "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required "
                    'unsecuredLoginStringClaim_sub="broker";'
                )
        return found

    def _java(self) -> list[str]:
        libs = cache_directory() / "libs"
        logging = f"-Dlog4j2.configurationFile={self.directory / 'log4j2.yaml'}"
        return ["java", *HEAP, *FAST_START_OPTIONS, logging, "-cp", f"{libs}/*"]

    def _format(self, properties: Path) -> None:
        """Writes the cluster id and the SCRAM users to the data directory."""
        cluster = urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
        # A leading dash would be parsed as an option.
        arguments = ["format", "--standalone", f"--cluster-id=k{cluster[1:]}", "--config", str(properties)]
        if "SASL" in self.security:
            for user, password in self.users.items():
                for mechanism in SCRAM:
                    arguments += ["--add-scram", f"{mechanism}=[name={user},password={password}]"]
        command = [*self._java(), "kafka.tools.StorageTool", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=FORMAT_SECONDS_MAX, check=False)
        if done.returncode:
            raise LocalError(f"the data directory could not be formatted:\n{(done.stdout + done.stderr)[-2000:]}")
