"""Tests that the Kubernetes manifests and docker-compose.yml have safe defaults, also for drains and upgrades."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from ingest.settings import Settings
from tasks.configuration import configuration
from tasks.names import CONTROL_QUEUE, flush_queue
from tasks.wire import SinkName
from tests.kit.paths import ROOT

KUBERNETES = ROOT / "deploy" / "kubernetes"
QUEUES = {CONTROL_QUEUE, *(flush_queue(sink) for sink in SinkName)}
SETTINGS = {f"REPLAYS_{name.upper()}" for name in Settings.model_fields}


@cache
def documents() -> list[dict[str, Any]]:
    """Returns all manifests, parsed."""
    found: list[dict[str, Any]] = []
    for path in sorted(KUBERNETES.rglob("*.yaml")):
        found += [document for document in yaml.safe_load_all(path.read_text()) if document]
    return found


def workloads() -> list[dict[str, Any]]:
    return [document for document in documents() if document["kind"] in ("Deployment", "StatefulSet")]


def named(kind: str) -> dict[str, dict[str, Any]]:
    return {document["metadata"]["name"]: document for document in documents() if document["kind"] == kind}


def pods() -> dict[str, dict[str, Any]]:
    """Maps the name of each workload, Job and CronJob to its pod spec."""
    found = {
        each["metadata"]["name"]: each["spec"]["template"]["spec"]
        for each in (*workloads(), *named("Job").values())
    }
    for name, cron in named("CronJob").items():
        found[name] = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    return found


@pytest.mark.parametrize(("name", "pod"), pods().items(), ids=list(pods()))
def test_a_pod_has_no_more_rights_than_it_needs(name: str, pod: dict[str, Any]):
    """Pods run as non-root with a read-only root filesystem, no service account token, no capabilities and a
    memory limit; long-running pods have probes.
    """
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False  # REPLAYS_*_SERVICE_HOST would be refused as an unknown setting
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]
        assert "cpu" not in container["resources"]["limits"]  # throttling can look like a stuck loop
        if pod.get("restartPolicy") != "Never":
            assert {"livenessProbe", "readinessProbe", "startupProbe"} <= container.keys()
        for variable in container["env"]:
            secret = re.search("PASSWORD|SECRET|REDIS_URL|DSN|USERNAME", variable["name"])
            assert not secret or "secretKeyRef" in variable["valueFrom"], variable["name"]


def test_a_reader_has_enough_time_to_drain():
    """A reader has enough time for its drain: SIGKILL is sent only after the deadline of the drain that SIGTERM
    starts.
    """
    (reader,) = (document for document in documents() if document["kind"] == "StatefulSet")
    settings = next(document for document in documents() if document["kind"] == "ConfigMap")["data"]
    drain_seconds = float(settings["REPLAYS_DRAIN_DEADLINE_SECONDS"])

    assert reader["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= drain_seconds + 10
    assert drain_seconds < float(settings["REPLAYS_KAFKA_SESSION_TIMEOUT_SECONDS"])


def test_every_setting_in_the_manifests_exists():
    """Every setting in the manifests exists. With a misspelt setting, the pod would not start."""
    for path in [*KUBERNETES.rglob("*.yaml"), ROOT / "docker-compose.yml", ROOT / "Dockerfile"]:
        for name in set(re.findall(r"\bREPLAYS_[A-Z][A-Z_]*\b", path.read_text())):
            known = name in SETTINGS or name in ("REPLAYS_READER_SERVICE_HOST", "REPLAYS_")
            assert known, f"{name} in {path.name}"


def test_the_values_of_the_manifests_are_allowed(monkeypatch: pytest.MonkeyPatch):
    """A pod that reads the settings of the ConfigMap accepts all of them."""
    for name in [name for name in os.environ if name.startswith("REPLAYS_")]:
        monkeypatch.delenv(name)
    data = next(document for document in documents() if document["kind"] == "ConfigMap")["data"]
    for name, value in data.items():
        monkeypatch.setenv(name, value)

    assert Settings().kafka_sasl_mechanism == "SCRAM-SHA-512"


def queues() -> dict[str, str]:
    """Maps the name of each worker Deployment to the queue that it consumes."""
    return {
        name: each["spec"]["template"]["spec"]["containers"][0]["args"][1]
        for name, each in named("Deployment").items()
        if name.startswith("replays-worker")
    }


def test_each_queue_has_a_deployment_that_scales_on_its_depth():
    """Each queue has a Deployment that scales on the length of the list that Celery fills.

    A queue without workers would stop ingestion.
    """
    prefix = configuration(Settings())["broker_transport_options"]["global_keyprefix"]
    scaled = {
        document["spec"]["scaleTargetRef"]["name"]: document["spec"]["triggers"][0]
        for document in named("ScaledObject").values()
    }

    assert set(queues().values()) == QUEUES
    for name, queue in queues().items():
        assert scaled[name]["type"] == "redis"
        assert scaled[name]["metadata"]["listName"] == prefix + queue
    assert scaled["replays-reader"]["type"] == "kafka"
    assert scaled["replays-reader"]["metadata"]["consumerGroup"] == Settings().kafka_group
    assert scaled["replays-reader"]["metadata"]["topic"] == Settings().kafka_topic


def test_no_workload_resets_the_replicas_that_keda_chose():
    """No workload that KEDA scales sets `replicas`, because `kubectl apply` would then scale it down, even
    during a backlog.
    """
    scaled = {
        (d["spec"]["scaleTargetRef"].get("kind", "Deployment"), d["spec"]["scaleTargetRef"]["name"])
        for d in named("ScaledObject").values()
    }

    assert ("StatefulSet", "replays-reader") in scaled
    for workload in workloads():
        is_scaled = (workload["kind"], workload["metadata"]["name"]) in scaled
        assert is_scaled != ("replicas" in workload["spec"]), workload["metadata"]["name"]


def test_drains_and_upgrades_leave_pods_running():
    """Readers and the workers of each queue have a disruption budget and are spread over zones and nodes."""
    budgets = [each["spec"] for each in named("PodDisruptionBudget").values()]
    for name in ("replays-reader", *queues()):
        (workload,) = (each for each in workloads() if each["metadata"]["name"] == name)
        labels = workload["spec"]["selector"]["matchLabels"]
        spread = workload["spec"]["template"]["spec"]["topologySpreadConstraints"]

        assert {"maxUnavailable": 1, "selector": {"matchLabels": labels}} in budgets, name
        keys = {each["topologyKey"] for each in spread}
        assert keys == {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}
        assert all(each["labelSelector"] == {"matchLabels": labels} for each in spread), name


def test_services_select_their_pods():
    """Flower's Service, and the headless Service named in the StatefulSet, match their pods by label and port."""
    reader = named("StatefulSet")["replays-reader"]
    headless = named("Service")[reader["spec"]["serviceName"]]

    assert headless["spec"]["clusterIP"] == "None"
    for service, workload in (
        (headless, reader),
        (named("Service")["replays-flower"], named("Deployment")["replays-flower"]),
    ):
        template = workload["spec"]["template"]
        assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
        ports = {port["name"] for port in template["spec"]["containers"][0]["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def test_every_pod_with_metrics_is_scraped_and_reachable():
    """Each component has a PodMonitor with the label and port of its pods; the network policy admits
    Prometheus.
    """
    admitted = {
        port["port"]
        for rule in named("NetworkPolicy")["replays-ingest"]["spec"]["ingress"]
        for port in rule["ports"]
    }
    for workload in workloads():
        template = workload["spec"]["template"]
        labels = template["metadata"]["labels"]
        monitors = [
            each["spec"]
            for each in named("PodMonitor").values()
            if each["spec"]["selector"]["matchLabels"].items() <= labels.items()
        ]
        (port,) = template["spec"]["containers"][0]["ports"]
        (endpoint,) = (endpoint for spec in monitors for endpoint in spec["podMetricsEndpoints"])

        assert endpoint["port"] == port["name"]
        assert port["containerPort"] in admitted
        assert {each["targetLabel"] for each in endpoint["relabelings"]} == {"job", "topic"}


def test_check_and_migrate_reach_everything_the_system_uses():
    """The pods of `check` and `migrate` have the settings, secrets and network access of readers and workers, so
    that they can reach and authenticate to the same servers.
    """
    (migrate,) = (name for name in named("Job") if name.startswith("replays-migrate"))
    settings = named("ConfigMap")["replays-settings"]["data"]
    needed = {
        entry["name"] for name, pod in pods().items() if "worker" in name for entry in pod["containers"][0]["env"]
    }
    for name in ("replays-check", migrate):
        (container,) = pods()[name]["containers"]
        given = {entry["name"]: entry for entry in container["env"]}

        assert needed - {"REPLAYS_WORKER_HTTP_PORT"} <= set(given)
        assert {
            key: entry.get("value") for key, entry in given.items() if key in settings
        }.items() <= settings.items()
        assert set(settings) - set(given) == {"REPLAYS_HTTP_HOST", "REPLAYS_WORKER_HTTP_HOST"}
    assert named("CronJob")["replays-check"]["spec"]["suspend"] is True


def test_migrate_runs_before_the_pods_of_an_upgrade():
    """`migrate` is a Helm hook that runs before the pods of an upgrade.

    A Job is immutable, so its name depends on its contents.
    """
    (job,) = named("Job").values()

    assert job["metadata"]["annotations"]["helm.sh/hook"] == "post-install,pre-upgrade"
    assert re.fullmatch(r"replays-migrate-[0-9a-f]{8}", job["metadata"]["name"])
    assert job["spec"]["template"]["spec"]["containers"][0]["command"] == ["replays-ingest", "migrate"]


def test_the_policy_lets_spans_reach_a_collector():
    """The policy allows OTLP over gRPC and over HTTP."""
    egress = named("NetworkPolicy")["replays-ingest"]["spec"]["egress"]

    assert [{"protocol": "TCP", "port": port} for port in (4317, 4318)] in [rule["ports"] for rule in egress]


def test_readers_are_dynamic_members_with_cooperative_hand_over():
    """Readers are dynamic group members: a static member removed by scaling down would keep its partitions until
    the session times out.
    """
    assert Settings().kafka_instance_id == ""
    for path in KUBERNETES.rglob("*.yaml"):
        set_there = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
        assert "REPLAYS_KAFKA_INSTANCE_ID" not in "\n".join(set_there), path.name
        assert "REPLAYS_KAFKA_GROUP_PROTOCOL" not in "\n".join(set_there), path.name


def test_metrics_go_to_the_agent_of_the_node():
    """Metrics are sent to the agent on the node, and the network policy allows it.

    By default they would be sent to the pod itself, where nothing listens.
    """
    for name, pod in pods().items():
        if name == "replays-flower":
            continue
        for container in pod["containers"]:
            (host,) = [entry for entry in container["env"] if entry["name"] == "REPLAYS_DATADOG_HOST"]
            assert host["valueFrom"] == {"fieldRef": {"fieldPath": "status.hostIP"}}
    (policy,) = (d for d in documents() if d["kind"] == "NetworkPolicy")
    port = {"protocol": "UDP", "port": Settings().datadog_port}
    assert {"ports": [port]} in policy["spec"]["egress"]


def test_secrets_are_only_referenced():
    """The manifests only reference the Secret.

    The example Secret has values marked as examples, and is not applied with the other manifests.
    """
    kustomization = (KUBERNETES / "kustomization.yaml").read_text()
    example = yaml.safe_load((KUBERNETES / "secrets.example.yaml").read_text())

    assert "secrets.example" not in kustomization.split("resources:")[1]
    wanted = {
        match
        for path in KUBERNETES.rglob("*.yaml")
        for match in re.findall(r"name: replays-secrets, key: ([a-z-]+)", path.read_text())
    }
    assert wanted == set(example["stringData"])
    assert list(named("NetworkPolicy")) == ["replays-ingest"]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kustomize_builds_it():
    """`kubectl kustomize` builds the manifests, and all objects are in one namespace."""
    result = subprocess.run(["kubectl", "kustomize", str(KUBERNETES)], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    built = [document for document in yaml.safe_load_all(result.stdout) if document]
    deployments = [
        d for d in built if d["kind"] == "Deployment" and "args" in d["spec"]["template"]["spec"]["containers"][0]
    ]

    assert len(built) == len([d for d in documents() if d["kind"] not in ("Kustomization", "Secret")])
    assert {d["metadata"]["namespace"] for d in built} == {"replays"}
    assert {d["spec"]["template"]["spec"]["containers"][0]["args"][1] for d in deployments} == QUEUES
    selectors = [tuple(sorted(d["spec"]["selector"]["matchLabels"].items())) for d in deployments]
    assert len(set(selectors)) == len(selectors)


COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()
HISTORY = "REPLAYS_FLOWER_HISTORY_PATH"


def test_compose_has_every_component_and_listens_on_loopback_only():
    """Every component is in the Compose file and listens only on the loopback interface.

    Our containers have no capabilities, and their root filesystems are read-only.
    """
    services = COMPOSE["services"]
    wanted = {"kafka", "redis", "clickhouse", "gcs", "bigquery", "statsd", "reader", "worker", "flower"}
    assert wanted | {"prometheus", "grafana", "migrate"} == set(services)
    for name, service in services.items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name
    for name in ("reader", "worker", "flower", "migrate"):
        assert services[name]["read_only"] is True
        assert services[name]["cap_drop"] == ["ALL"]
    for name in ("kafka", "redis", "clickhouse", "reader", "worker", "flower", "prometheus"):
        assert services[name]["healthcheck"]["test"], name
    assert "noeviction" in services["redis"]["command"]
    for name, service in services.items():
        image = service.get("image", "replays-ingest:local")
        assert ":" in image, name
        assert not image.endswith(":latest"), name


def _listens_on(service: str) -> set[int]:
    """Returns the metrics ports of a service of docker-compose.yml, from its settings or its image's
    documentation.
    """
    environment = COMPOSE["services"][service].get("environment", {})
    if service == "statsd":
        return {9102}
    if service == "flower":
        return {Settings().flower_port}
    return {
        int(environment[name]) for name in ("REPLAYS_HTTP_PORT", "REPLAYS_WORKER_HTTP_PORT") if name in environment
    }


def test_prometheus_scrapes_exactly_the_services_of_compose():
    """Prometheus scrapes exactly the services of the Compose file that expose metrics, on the ports on which they
    listen.

    The comment in the file lists each of the scraped services.
    """
    path = ROOT / "deploy" / "prometheus" / "prometheus.yml"
    targets = set()
    for job in yaml.safe_load(path.read_text())["scrape_configs"]:
        for found in job.get("dns_sd_configs", []):
            targets |= {(name, found["port"]) for name in found["names"]}
        for found in job.get("static_configs", []):
            targets |= {(target.split(":")[0], int(target.split(":")[1])) for target in found["targets"]}
    comment = " ".join(line.lstrip("# ") for line in path.read_text().split("global:")[0].splitlines())

    assert {service for service, _ in targets} == {"reader", "worker", "flower", "statsd"}
    for service, port in targets:
        assert port in _listens_on(service), service
        assert re.search(rf"\b{service}\b", comment), service


def test_prometheus_has_the_password_of_flower():
    """Prometheus reads the password for Flower's metrics from a file that only Prometheus' container has."""
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    (job,) = (job for job in config["scrape_configs"] if job["job_name"] == "replays-flower")
    user, _, password = COMPOSE["services"]["flower"]["environment"]["REPLAYS_FLOWER_BASIC_AUTH"].partition(":")

    assert job["basic_auth"]["username"] == user
    assert f"> {job['basic_auth']['password_file']} " in COMPOSE["services"]["prometheus"]["command"][0]
    assert COMPOSE["services"]["prometheus"]["environment"]["FLOWER_PASSWORD"] == password


def test_data_that_must_survive_compose_down_is_in_a_volume():
    """Data that must survive `compose down` is in a volume, because the command removes everything else."""
    kept = {
        "kafka": COMPOSE["services"]["kafka"]["environment"]["KAFKA_LOG_DIRS"],
        "redis": "/data",
        "clickhouse": "/var/lib/clickhouse",
        "gcs": "/storage",
        "flower": str(Path(COMPOSE["services"]["flower"]["environment"][HISTORY]).parent),
        "prometheus": "/prometheus",
    }

    assert set(kept) == set(COMPOSE["volumes"])
    for service, directory in kept.items():
        assert f"{service}:{directory}" in COMPOSE["services"][service]["volumes"], service
    assert f"--storage.tsdb.path={kept['prometheus']}" in COMPOSE["services"]["prometheus"]["command"][0]


def test_flower_keeps_its_task_history_outside_its_container():
    """The path of Flower's task history is set, and is on a volume.

    The image contains the directory, because a new Docker volume gets the owner of that directory.
    """
    pod = named("Deployment")["replays-flower"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (path,) = (each["value"] for each in container["env"] if each["name"] == HISTORY)
    mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
    (volume,) = (each for each in pod["volumes"] if each["name"] == mounts[str(Path(path).parent)])

    assert "medium" not in volume["emptyDir"]  # on disk, so that it does not count as the container's memory
    assert path == COMPOSE["services"]["flower"]["environment"][HISTORY]
    assert f"install --directory --owner 10001 --group 10001 --mode 700 {Path(path).parent}" in DOCKERFILE


def _compose() -> list[str] | None:
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    if shutil.which("docker"):
        there = subprocess.run(["docker", "compose", "version"], capture_output=True, timeout=30)
        return ["docker", "compose"] if there.returncode == 0 else None
    return None


@pytest.mark.skipif(_compose() is None, reason="no docker compose is installed")
def test_compose_is_valid_and_requires_a_flower_password():
    """Docker Compose accepts the file if a password for Flower is set, and refuses it otherwise."""
    command = [*(_compose() or []), "-f", str(ROOT / "docker-compose.yml"), "config"]
    base = {name: value for name, value in os.environ.items() if not name.startswith("REPLAYS_")}
    with_password = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        env={**base, "FLOWER_PASSWORD": "something-long"},
    )
    without = subprocess.run(command, capture_output=True, text=True, timeout=60, env=base)

    assert with_password.returncode == 0, with_password.stderr
    assert without.returncode != 0
    assert "set it, eight characters at least" in without.stderr


def test_the_image_runs_without_root_and_contains_only_the_program():
    """The image does not run as root, and contains no compiler, no tests and no Git repository."""
    text = (ROOT / "Dockerfile").read_text()
    assert text.count("FROM ") == 2
    assert re.search(r"^USER 10001", text, re.MULTILINE)
    assert "--only-binary :all:" in text
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    assert "!tests" not in ignored
    assert "!.git" not in ignored
    copied = {
        name for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE) for name in line.split()
    }
    assert {f"!{name}" for name in copied} <= set(ignored)
    for name in copied:
        assert (ROOT / name).exists(), name


def test_the_image_build_gets_all_sources_of_the_wheel():
    """Every source file of the wheel is copied into the image build and is not excluded by .dockerignore."""
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    copied = set()
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            copied.update(line.split()[1:-1])
    not_ignored = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}

    assert set(wheel["only-include"]) <= copied
    assert copied == not_ignored
