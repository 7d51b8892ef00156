"""The settings shared by readers and workers, and those of workers and Flower. If a setting has a unit, the
setting's name ends with the unit.

`tasks.loading` reads the settings and reports mistakes in them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from tasks.addresses import brokers, http_url
from tasks.credential_files import certificate_store, certificates, content, google_credentials, key_pair
from tasks.guarded import refusal
from tasks.redis_address import TLS_OPTIONS, RedisAddress, Scheme, parse
from tasks.seals import Seals, keys_of
from tasks.setting_text import check as check_text
from tasks.units import MiB
from tasks.wire import SinkName

ENV_PREFIX = "REPLAYS_"
FILE_VARIABLE = "REPLAYS_SETTINGS_FILE"
CLICKHOUSE_LOGIN = "set REPLAYS_CLICKHOUSE_USER and REPLAYS_CLICKHOUSE_PASSWORD instead"
KEY_PASSWORD = "ssl.key.password"


class Settings(BaseSettings):
    """Settings of a worker. The reader's settings extend these."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="ignore", frozen=True)

    # Redis: task broker, and staging area for batches
    redis_url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"),
        description="Redis for queues, chords, staged batches and completions: redis://, rediss:// (TLS), "
        "redis+socket:///path, or sentinel://host:26379;sentinel://host:26379/0. May contain the Redis user "
        "name and password. maxmemory-policy must be noeviction. docs/redis.md lists the supported URL options.",
    )
    redis_tls_ca_file: Path | None = Field(
        None, description="CA bundle for TLS to Redis and Sentinel; system default if unset."
    )
    redis_sentinel_master: str = Field(
        "",
        pattern=r"^[A-Za-z0-9_.-]{0,128}$",
        description="Name of the primary that the Sentinels monitor. Required with a sentinel:// URL.",
    )
    redis_sentinel_username: str = Field("", description="User name for the Sentinels themselves.")
    redis_sentinel_password: SecretStr = Field(
        SecretStr(""), description="Password for the Sentinels themselves; the password in the URL is for Redis."
    )
    redis_sentinel_tls: Literal["off", "redis", "all"] = Field(
        "off",
        description="Connections that use TLS with a sentinel:// URL: none (off), to Redis only (redis), or "
        "also to the Sentinels (all).",
    )
    redis_timeout_seconds: float = Field(5.0, ge=0.1, le=60, description="Socket timeout of Redis calls.")
    key_prefix: str = Field("replays", pattern=r"^[a-z0-9_.-]{1,32}$", description="Prefix of all Redis keys.")
    staged_ttl_seconds: int = Field(
        6 * 3600,
        ge=600,
        le=7 * 86400,
        description="Expiry of staged bytes and done marks, counted from their last write or renewal.",
    )

    shared_key: SecretStr = Field(
        SecretStr(""),
        description="Secret shared by readers, workers and operator commands. Authenticates staged batches, "
        "done marks, completions, parked batches and dead letters. Comma-separated list: the first key creates "
        "the authentication codes (seals), and every key verifies them; at least 32 characters each. If empty, "
        "entries are not authenticated.",
    )
    shared_key_file: Path | None = Field(None, description="File that contains the shared key.")
    shared_key_unsealed: Literal["refuse", "accept"] = Field(
        "refuse",
        description="Handling of entries without a seal when a shared key is set. Use `accept` while "
        "processes without the key are still running. Invalid seals are always refused.",
    )

    heartbeat_seconds: float = Field(
        5.0,
        ge=0.2,
        le=300,
        description="Interval at which a reader publishes its state to Redis and reads queue depths.",
    )

    # Kafka: needed by readers and workers, because workers produce dead letters
    kafka_brokers: str = Field(
        "127.0.0.1:9092", min_length=1, description="Kafka brokers (bootstrap.servers), separated by commas."
    )
    kafka_topic: str = Field("ingest-replay-recordings", min_length=1, description="Input topic.")
    dead_letter_topic: str = Field("", description="Dead-letter topic. Default: <kafka_topic>-dlq.")
    kafka_operators_topic: str = Field(
        "",
        description="Compacted topic of operators' decisions: kill switches, limits, erasures, audit trail. "
        "Default: <kafka_topic>-operators.",
    )
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="Security protocol of broker connections."
    )
    kafka_sasl_mechanism: Literal["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] = Field(
        "", description="SASL mechanism; empty without SASL."
    )
    kafka_sasl_username: str = Field("", description="SASL user name.")
    kafka_sasl_password: SecretStr = Field(SecretStr(""), description="SASL password.")
    kafka_ssl_ca_file: Path | None = Field(None, description="CA bundle for verifying the brokers' certificates.")
    kafka_ssl_certificate_file: Path | None = Field(None, description="Client certificate (mutual TLS).")
    kafka_ssl_key_file: Path | None = Field(None, description="Key of the client certificate.")
    kafka_options: dict[str, str] = Field(
        default_factory=dict,
        description="Additional librdkafka properties as a JSON object (OAUTHBEARER endpoints, tuning). They "
        "override other settings. Properties that at-least-once delivery depends on are refused (listed in "
        "tasks/guarded.py).",
    )

    # Sinks
    sinks: Annotated[tuple[SinkName, ...], NoDecode] = Field(
        tuple(SinkName),
        description="Enabled sinks, separated by commas. dead_letter cannot be disabled.",
    )
    sink_kind: Literal["real", "memory"] = Field(
        "real",
        description="Type of sinks: real, or memory, which keeps items in the process (for tests and --dry-run).",
    )

    gcs_bucket: str = Field("replays", min_length=1, description="Bucket for recordings.")
    gcs_project: str = Field("replays", description="Google Cloud project of the bucket.")
    gcs_endpoint: str = Field(
        "", description="Endpoint of an emulator. If set, requests are sent there with anonymous credentials."
    )
    gcs_layout: Literal["segment", "packed"] = Field(
        "segment",
        description="segment stores one object per segment; packed stores one per batch and retention class, with "
        "an index in ClickHouse.",
    )
    gcs_connections: int = Field(
        64,
        ge=1,
        le=256,
        description="Maximum number of concurrent uploads per flush task, each on its own persistent connection.",
    )
    gcs_location: str = Field(
        "", description="Location in which `migrate` creates the bucket. If empty, Google's default (US) applies."
    )
    google_credentials_file: Path | None = Field(
        None,
        description="Service account key file. If unset, application default credentials (workload identity) are "
        "used.",
    )

    clickhouse_url: str = Field(
        "http://127.0.0.1:8123", description="HTTP interface of ClickHouse; https:// enables TLS."
    )
    clickhouse_database: str = Field(
        "default", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="ClickHouse database."
    )
    clickhouse_cluster: str = Field(
        "",
        pattern=r"^[A-Za-z0-9_.-]*$",
        description="Cluster on which `migrate` creates Replicated tables. Leave it empty for a single node or a "
        "service that replicates tables by itself.",
    )
    clickhouse_user: str = Field("default", description="ClickHouse user.")
    clickhouse_password: SecretStr = Field(SecretStr(""), description="ClickHouse password.")
    clickhouse_tls_ca_file: Path | None = Field(None, description="CA bundle for TLS to ClickHouse.")

    bigquery_project: str = Field("replays", min_length=1, description="Google Cloud project of the dataset.")
    bigquery_dataset: str = Field("replays", pattern=r"^[A-Za-z0-9_]{1,1024}$", description="BigQuery dataset.")
    bigquery_location: str = Field(
        "", description="Location in which `migrate` creates the dataset. If empty, Google's default applies."
    )
    bigquery_expiration_days: int = Field(
        0, ge=0, le=3650, description="Partition expiration, in days, that `migrate` sets; 0 disables expiration."
    )
    bigquery_endpoint: str = Field(
        "", description="Endpoint of an emulator. If set, requests are sent there with anonymous credentials."
    )

    bigquery_write: Literal["insert_all", "storage"] = Field(
        "insert_all",
        description="API that writes rows: insert_all (streaming inserts) or storage (Storage Write API, with an "
        "offset for each append, so that repeated tasks store each row once). Readers encode rows for "
        "this API, so readers and workers need the same value.",
    )
    bigquery_storage_endpoint: str = Field(
        "",
        description="gRPC endpoint of an emulator of the Storage Write API: http://host:port, or https:// for "
        "TLS. If set, requests are sent there with anonymous credentials.",
    )

    datadog_host: str = Field(
        "127.0.0.1", description="DogStatsD host for product metrics; in Kubernetes, the node's address."
    )
    datadog_port: int = Field(8125, ge=1, le=65535, description="DogStatsD port.")
    datadog_socket: str = Field(
        "",
        description="DogStatsD Unix socket: a path, optionally prefixed with unix://, unixgram:// or "
        "unixstream://. Overrides host and port.",
    )

    metrics_dogstatsd: bool = Field(
        False, description="Also send the metrics listed in docs/metrics.md to DogStatsD, under the same names."
    )

    # Interfaces of a worker, and settings common to readers and workers
    worker_http_host: str = Field(
        "127.0.0.1", description="Listen address of a worker's /livez, /readyz and /metrics."
    )
    worker_http_port: int = Field(
        -1,
        ge=-1,
        le=65535,
        description="Port of a worker's /livez, /readyz and /metrics; 0 picks a free one, -1 disables them. "
        "Workers cannot share a port (deploy/ uses 9465).",
    )
    worker_silent_seconds_max: float = Field(
        300.0, ge=5, le=86_400, description="Time without a heartbeat after which a worker's /livez fails."
    )
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="Log format. auto: text on a terminal, otherwise json."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Minimum level of log lines."
    )
    tracing: bool = Field(
        False,
        description="Enable OpenTelemetry tracing, from the Kafka headers to each sink. Requires the extra "
        "`otel` or the extra `otel-grpc`, and OTEL_* variables.",
    )
    sentry_dsn: SecretStr = Field(
        SecretStr(""),
        description="Sentry DSN for error reports. Requires the extra `sentry`. If empty, reporting is disabled.",
    )

    # Flush tasks
    task_retries_max: int = Field(
        8, ge=0, le=50, description="Maximum number of retries of a flush task after transient errors."
    )
    task_backoff_seconds: float = Field(
        1.0, gt=0, le=60, description="Initial retry backoff of a flush task, before jitter."
    )
    task_backoff_seconds_max: float = Field(
        15.0,
        gt=0,
        le=300,
        description="Maximum retry backoff of a flush task, before jitter. While the sink's breaker is open, "
        "tasks wait for the breaker's next probe instead.",
    )
    sink_timeout_seconds: float = Field(30.0, ge=0.5, le=300, description="Timeout of one sink call.")
    task_visibility_seconds: int = Field(
        600,
        ge=5,
        le=43200,
        description="Time after which an unacknowledged task (of a dead worker) is redelivered.",
    )
    blobs_per_task: int = Field(512, ge=1, le=1000, description="Maximum number of blobs per GCS flush task.")
    task_starts_max: int = Field(
        4,
        ge=1,
        le=100,
        description="Worker crashes tolerated before a task fails.",
    )
    worker_processes: int = Field(
        0,
        ge=0,
        le=256,
        description="Number of worker processes. 0: one per core of the container's CPU quota, at least 8 "
        "and at most REPLAYS_WORKER_PROCESSES_MAX.",
    )
    worker_processes_max: int = Field(
        16,
        ge=1,
        le=256,
        description="Maximum number of worker processes when REPLAYS_WORKER_PROCESSES is 0. Each process "
        "needs about 28 MiB under load, and the parent process 100 MiB.",
    )
    breaker_window_seconds: float = Field(30.0, ge=1, le=3600, description="Circuit-breaker failure-rate window.")
    breaker_failures_min: int = Field(
        5,
        ge=1,
        le=10_000,
        description="Minimum number of failed calls in the window before the breaker opens. More than half of the "
        "calls must also have failed.",
    )
    breaker_cool_seconds: float = Field(
        5.0,
        ge=0.1,
        le=600,
        description="Initial wait before an open breaker allows a probe; doubles after each failed probe.",
    )
    breaker_cool_seconds_max: float = Field(
        15.0, ge=0.1, le=3600, description="Maximum wait before an open breaker allows a probe."
    )

    # Flower
    task_events: bool = Field(
        True,
        description="If true, workers publish an event for each step of a task, and Flower lists tasks from these "
        "events. If false, Flower shows no tasks, but still shows parked batches, workers and queues, and workers "
        "use less CPU. Workers and Flower need the same value.",
    )
    flower_host: str = Field("127.0.0.1", min_length=1, description="Listen address of Flower.")
    flower_port: int = Field(5555, ge=0, le=65535, description="Port for Flower; 0 picks a free one.")
    flower_basic_auth: SecretStr = Field(
        SecretStr(""),
        description="Flower logins as user:password, separated by commas. Flower does not start without a login "
        "or OAuth.",
    )
    flower_oauth_provider: Literal["", "google", "github", "gitlab", "okta"] = Field(
        "",
        description="OAuth provider for Flower logins, instead of passwords. Requires the key, the secret and the "
        "allowed e-mail addresses.",
    )
    flower_oauth_key: str = Field("", description="OAuth client id.")
    flower_oauth_secret: SecretStr = Field(SecretStr(""), description="OAuth client secret.")
    flower_oauth_redirect_uri: str = Field("", description="OAuth redirect URI, ending in /login.")
    flower_oauth_emails: str = Field(
        "",
        description="E-mail addresses that may log in to Flower: one address, several addresses separated by |, "
        "or a pattern with .* before the @, for example .*@example.com.",
    )

    flower_history_path: str = Field(
        "",
        description="SQLite file with Flower's task history, which then survives a restart. Empty: no history.",
    )
    flower_history_seconds_max: int = Field(
        259_200, ge=60, le=31_536_000, description="Maximum age of a task event in the history, in seconds."
    )
    flower_history_bytes_max: int = Field(
        64 * MiB,
        ge=1 * MiB,
        le=4096 * MiB,
        description="Maximum size of the history file; the oldest events are deleted.",
    )

    task_security_key_file: Path | None = Field(None, description="Private key for signed Celery messages.")
    task_security_certificate_file: Path | None = Field(None, description="Certificate of the signing key.")
    task_security_store: str = Field(
        "", description="Glob pattern that matches the files with trusted signing certificates."
    )

    @property
    def redis_address(self) -> RedisAddress:
        """Parsed `redis_url`. Contains the password; do not log it."""
        return parse(self.redis_url.get_secret_value())

    @cached_property
    def seals(self) -> Seals:
        """The object that creates and verifies seals; inactive without a shared key."""
        text = self.shared_key.get_secret_value()
        if self.shared_key_file is not None:
            text = content(self.shared_key_file).decode("utf-8", "replace")
        return Seals(keys_of(text), unsealed_accepted=self.shared_key_unsealed == "accept")

    @property
    def redis_tls(self) -> bool:
        """Whether connections to Redis itself use TLS."""
        return self.redis_address.scheme is Scheme.TLS or self.redis_sentinel_tls != "off"

    @property
    def operators_topic(self) -> str:
        """Name of the operators' topic."""
        return self.kafka_operators_topic or f"{self.kafka_topic}-operators"

    @property
    def dlq_topic(self) -> str:
        """Name of the dead-letter topic."""
        return self.dead_letter_topic or f"{self.kafka_topic}-dlq"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Sources by precedence: arguments, the environment, the file."""
        path = os.environ.get(FILE_VARIABLE)
        file = (TomlConfigSettingsSource(settings_cls, toml_file=path),) if path else ()
        return (init_settings, env_settings, *file)

    @field_validator("*", mode="before")
    @classmethod
    def _check_name_form(cls, value: object, info: ValidationInfo) -> object:
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        if isinstance(text, str):
            check_text(info.field_name or "", text)
        return value

    @field_validator("sinks", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return (
            tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value
        )

    @field_validator("redis_url")
    @classmethod
    def _check_redis_address(cls, value: SecretStr) -> SecretStr:
        parse(value.get_secret_value())
        return value

    @model_validator(mode="after")
    def _check_sentinel_options(self) -> Self:
        address = self.redis_address
        sentinel = ("redis_sentinel_username", "redis_sentinel_password", "redis_sentinel_tls")
        if address.scheme is Scheme.SENTINEL:
            if not self.redis_sentinel_master:
                raise ValueError(f"{ENV_PREFIX}REDIS_SENTINEL_MASTER: a sentinel:// URL needs the primary's name")
            idle = [name for name in address.options if name in TLS_OPTIONS]
            if idle and self.redis_sentinel_tls == "off":
                raise ValueError(f"{ENV_PREFIX}REDIS_URL: {idle[0]} needs {ENV_PREFIX}REDIS_SENTINEL_TLS")
            return self._check_redis_files()
        changed = [name for name in sentinel if getattr(self, name) != type(self).model_fields[name].default]
        for name in [*(["redis_sentinel_master"] if self.redis_sentinel_master else []), *changed]:
            raise ValueError(
                f"{ENV_PREFIX}{name.upper()} is not used: remove it, or set {ENV_PREFIX}REDIS_URL to a "
                "sentinel:// URL"
            )
        return self._check_redis_files()

    def _check_redis_files(self) -> Self:
        address = self.redis_address
        if bool(address.certificate_file) != bool(address.key_file):
            raise ValueError(f"{ENV_PREFIX}REDIS_URL: ssl_certfile and ssl_keyfile: set both or none")
        if address.certificate_file:
            _named("redis_url", key_pair, Path(address.certificate_file), Path(address.key_file))
        if self.redis_tls_ca_file is not None and not self.redis_tls:
            raise ValueError(
                f"{ENV_PREFIX}REDIS_TLS_CA_FILE is not used without TLS: use rediss:// in {ENV_PREFIX}REDIS_URL "
                f"(or {ENV_PREFIX}REDIS_SENTINEL_TLS), or leave the file out"
            )
        return self

    @model_validator(mode="after")
    def _check_credential_files(self) -> Self:
        signing = (self.task_security_key_file, self.task_security_certificate_file, self.task_security_store)
        if any(signing) and not all(signing):
            raise ValueError(
                f"{ENV_PREFIX}TASK_SECURITY_KEY_FILE, {ENV_PREFIX}TASK_SECURITY_CERTIFICATE_FILE, "
                f"{ENV_PREFIX}TASK_SECURITY_STORE: set all or none"
            )
        if self.task_security_key_file is not None and self.task_security_certificate_file is not None:
            _named(
                "task_security_key_file",
                key_pair,
                self.task_security_certificate_file,
                self.task_security_key_file,
            )
        return self

    @field_validator("redis_tls_ca_file", "kafka_ssl_ca_file", "clickhouse_tls_ca_file")
    @classmethod
    def _check_ca_file(cls, value: Path | None) -> Path | None:
        if value is not None:
            certificates(value)
        return value

    @field_validator(
        "kafka_ssl_certificate_file",
        "kafka_ssl_key_file",
        "task_security_key_file",
        "task_security_certificate_file",
    )
    @classmethod
    def _check_readable(cls, value: Path | None) -> Path | None:
        if value is not None:
            content(value)
        return value

    @field_validator("task_security_store")
    @classmethod
    def _check_certificate_store(cls, value: str) -> str:
        if value:
            certificate_store(value)
        return value

    @field_validator("google_credentials_file")
    @classmethod
    def _check_google_credentials(cls, value: Path | None) -> Path | None:
        if value is not None:
            google_credentials(value)
        return value

    @field_validator(
        "clickhouse_url",
        "gcs_endpoint",
        "bigquery_endpoint",
        "bigquery_storage_endpoint",
        "flower_oauth_redirect_uri",
    )
    @classmethod
    def _check_http_url(cls, value: str, info: ValidationInfo) -> str:
        if value or info.field_name == "clickhouse_url":
            http_url(value, credentials=CLICKHOUSE_LOGIN if info.field_name == "clickhouse_url" else "")
        return value

    @field_validator("kafka_brokers")
    @classmethod
    def _check_brokers(cls, value: str) -> str:
        brokers(value)
        return value

    @field_validator("sentry_dsn")
    @classmethod
    def _check_sentry_dsn(cls, value: SecretStr) -> SecretStr:
        text = value.get_secret_value()
        if text and not re.fullmatch(r"https?://[^@/\s]+@[^@/\s]+/\S*\d+", text):
            raise ValueError("is not of the form https://key@host/project")
        return value

    @model_validator(mode="after")
    def _check_kafka_encryption(self) -> Self:
        encrypted, signed_in = "SSL" in self.kafka_security_protocol, "SASL" in self.kafka_security_protocol
        pair = (self.kafka_ssl_certificate_file, self.kafka_ssl_key_file)
        protocol = f"{ENV_PREFIX}KAFKA_SECURITY_PROTOCOL={self.kafka_security_protocol}"
        if any(pair) and not all(pair):
            raise ValueError(
                f"{ENV_PREFIX}KAFKA_SSL_CERTIFICATE_FILE and {ENV_PREFIX}KAFKA_SSL_KEY_FILE: set both or none"
            )
        if pair[0] is not None and pair[1] is not None:
            _named("kafka_ssl_key_file", key_pair, *pair, self.kafka_options.get(KEY_PASSWORD, ""))
        if not encrypted and (self.kafka_ssl_ca_file is not None or any(pair)):
            raise ValueError(f"{protocol} does not use TLS, so the certificates are not used: set SSL or SASL_SSL")
        if self.kafka_sasl_mechanism and not signed_in:
            raise ValueError(
                f"{ENV_PREFIX}KAFKA_SASL_MECHANISM={self.kafka_sasl_mechanism} is not used with {protocol}: "
                "set SASL_SSL or SASL_PLAINTEXT, or leave the mechanism out"
            )
        return self

    @model_validator(mode="after")
    def _check_shared_key(self) -> Self:
        if self.shared_key_file is not None and self.shared_key.get_secret_value():
            raise ValueError(f"{ENV_PREFIX}SHARED_KEY, {ENV_PREFIX}SHARED_KEY_FILE: set one of the two")
        name = "SHARED_KEY" if self.shared_key_file is None else "SHARED_KEY_FILE"
        try:
            active = self.seals.active
        except ValueError as error:
            raise ValueError(f"{ENV_PREFIX}{name}: {error}") from None
        if self.shared_key_file is not None and not active:
            raise ValueError(f"{ENV_PREFIX}{name}: {self.shared_key_file} contains no key")
        return self

    @model_validator(mode="after")
    def _check_backoff_bounds(self) -> Self:
        ensure_not_above(self, "task_backoff_seconds", "task_backoff_seconds_max")
        ensure_not_above(self, "breaker_cool_seconds", "breaker_cool_seconds_max")
        return self

    @model_validator(mode="after")
    def _check_clickhouse_tls(self) -> Self:
        if self.clickhouse_tls_ca_file is not None and not self.clickhouse_url.startswith("https:"):
            raise ValueError(
                f"{ENV_PREFIX}CLICKHOUSE_TLS_CA_FILE is not used with http://: use https:// in "
                f"{ENV_PREFIX}CLICKHOUSE_URL, or leave the file out"
            )
        return self

    @model_validator(mode="after")
    def _check_bigquery_endpoints(self) -> Self:
        if self.bigquery_write == "storage" and self.bigquery_endpoint and not self.bigquery_storage_endpoint:
            raise ValueError(
                f"{ENV_PREFIX}BIGQUERY_STORAGE_ENDPOINT: set it to the emulator's gRPC address, because "
                f"{ENV_PREFIX}BIGQUERY_ENDPOINT is set and {ENV_PREFIX}BIGQUERY_WRITE=storage"
            )
        return self

    @field_validator("kafka_options", mode="before")
    @classmethod
    def _kafka_options_as_text(cls, value: object) -> object:
        """Converts JSON numbers and booleans to strings that librdkafka accepts."""
        if not isinstance(value, dict):
            return value
        return {name: _property_text(entry) for name, entry in value.items()}

    @model_validator(mode="after")
    def _check_kafka_options(self) -> Self:
        refusals = [(name, refusal(name)) for name in sorted(self.kafka_options)]
        texts = [f"{name} cannot be set: {reason}" for name, reason in refusals if reason is not None]
        if texts:
            raise ValueError(f"{ENV_PREFIX}KAFKA_OPTIONS: {'; '.join(texts)}")
        return self

    @model_validator(mode="after")
    def _check_packed_layout(self) -> Self:
        if self.gcs_layout == "packed" and SinkName.CLICKHOUSE not in self.sinks:
            raise ValueError(
                f"{ENV_PREFIX}GCS_LAYOUT=packed needs the sink clickhouse, which holds the index: "
                f"add it to {ENV_PREFIX}SINKS"
            )
        return self

    @model_validator(mode="after")
    def _check_dead_letter_sink(self) -> Self:
        if SinkName.DEAD_LETTER not in self.sinks:
            raise ValueError(
                f"{ENV_PREFIX}SINKS: dead_letter cannot be disabled because rejects would be lost: add it"
            )
        return self


def ensure_not_above(settings: Settings, low: str, high: str) -> None:
    """Raises ValueError with both names if the first setting is greater than the second."""
    first, second = getattr(settings, low), getattr(settings, high)
    if first > second:
        raise ValueError(
            f"{ENV_PREFIX}{low.upper()}={first:g} is above {ENV_PREFIX}{high.upper()}={second:g}: "
            "lower the first or raise the second"
        )


def _named(name: str, check: Callable[..., None], *arguments: object) -> None:
    """Runs the check; its error begins with the setting's name."""
    try:
        check(*arguments)
    except ValueError as error:
        raise ValueError(f"{ENV_PREFIX}{name.upper()}: {error}") from None


def _property_text(value: object) -> object:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value


def share_metrics_directory(directory: Path) -> None:
    """Sets the directory in which this process and its children store the Prometheus metrics that they share."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)


def telemetry_variables() -> dict[str, str]:
    """Returns the OTEL_* variables of the environment."""
    return {name: value for name, value in os.environ.items() if name.startswith("OTEL_")}
