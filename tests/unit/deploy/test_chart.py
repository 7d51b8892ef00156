"""Tests the effect of the values of the Helm chart, whose default rendering is deploy/kubernetes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr

from ingest.settings import Settings
from tests.kit.kubernetes import documents_of, manifest_errors
from tools.manifests import CHART, HEADER, MANIFESTS, files, helm, rendered, stale

VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
SECRETS = [name for name, field in Settings.model_fields.items() if field.annotation is SecretStr]
ALERTS = CHART.parents[1] / "prometheus" / "alerts.yml"

needs_helm = pytest.mark.skipif(shutil.which("helm") is None, reason="helm is not installed")


def by_name(documents: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in documents if each["kind"] == kind}


@pytest.mark.parametrize("path", sorted(MANIFESTS.glob("*.yaml")), ids=lambda path: path.name)
def test_the_manifests_match_the_schemas_of_their_kinds(path: Path):
    """The manifests match the schemas of their kinds.

    Core kinds are checked strictly, and custom resources by the fields that we use; an unknown field is an error.
    """
    for document in documents_of(path.read_text()):
        assert manifest_errors(document) == ""


@pytest.mark.parametrize(
    ("manifest", "field"),
    [
        (
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"clusterIp": "None"}},
            "clusterIp",
        ),
        (
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": "x"},
                "data": {"REPLAYS_HTTP_PORT": 9464},
            },
            "9464",
        ),
        (
            {
                "apiVersion": "keda.sh/v1alpha1",
                "kind": "ScaledObject",
                "metadata": {"name": "x"},
                "spec": {"scaleTargetRef": {"name": "x"}, "triggers": [{"type": "redis", "metadata": {"n": 16}}]},
            },
            "16",
        ),
        (
            {
                "apiVersion": "monitoring.coreos.com/v1",
                "kind": "PodMonitor",
                "metadata": {"name": "x"},
                "spec": {"selector": {"matchLabels": {}}, "podMetricsEndpoint": []},
            },
            "podMetricsEndpoint",
        ),
        ({"apiVersion": "apps/v2", "kind": "Deployment", "metadata": {"name": "x"}}, "Deployment"),
    ],
)
def test_a_wrong_field_type_or_kind_is_an_error(manifest: dict[str, Any], field: str):
    """A document with an unknown field, a wrong type or an unknown kind is reported, which shows that the schema
    test detects such errors.
    """
    assert field in manifest_errors(manifest)


def test_the_rule_object_holds_the_deployed_alerts():
    """The PrometheusRule object contains the same rules as deploy/prometheus/alerts.yml."""
    (rule,) = documents_of((MANIFESTS / "alerts.yaml").read_text())

    assert rule["spec"] == yaml.safe_load(ALERTS.read_text())


def test_every_file_is_marked_as_rendered_and_is_applied():
    """Every rendered file has a marker, because manual edits would be lost at the next rendering."""
    kustomization = yaml.safe_load((MANIFESTS / "kustomization.yaml").read_text())
    templates = {path.name for path in (CHART / "templates").glob("*.yaml")}

    assert set(kustomization["resources"]) == templates
    for name in templates - {"alerts.yaml"}:
        assert (MANIFESTS / name).read_text().startswith(HEADER)


def test_documents_are_split_by_their_template():
    """Output in the format of `helm template`, with a comment before a document and with an empty document, is
    split into one file per template.
    """
    printed = (
        "---\n# Source: replays-ingest/templates/a.yaml\n# why\nkind: A\n\nspec: 1  \n"
        "---\n# Source: replays-ingest/templates/b.yaml\nkind: B\n"
        "---\n# Source: replays-ingest/templates/a.yaml\nkind: C\n"
        "---\n# Source: replays-ingest/templates/c.yaml\n# nothing left\n"
    )

    assert files(printed) == {
        "a.yaml": HEADER + "# why\nkind: A\nspec: 1\n---\nkind: C\n",
        "b.yaml": HEADER + "kind: B\n",
    }


@needs_helm
def test_the_manifests_match_the_rendered_chart():
    """The manifests equal the rendered chart, which is their single source.

    `python -m tools.manifests` regenerates them.
    """
    assert stale() == []
    assert documents_of(rendered("--show-only", "templates/alerts.yaml")) == documents_of(
        (MANIFESTS / "alerts.yaml").read_text()
    )
    assert "0 chart(s) failed" in helm("lint", "--strict", str(CHART))


# Each combination is rendered once, because helm takes a while to start.
OPTIONS: dict[str, tuple[str, ...]] = {
    "without keda": ("keda.enabled=false", "reader.replicas=5", "worker.replicas=2"),
    "nothing optional": (
        "keda.enabled=false",
        "migrate.enabled=false",
        "check.enabled=false",
        "flower.enabled=false",
        "networkPolicy.enabled=false",
        "monitoring.podMonitors=false",
        "monitoring.prometheusRule=false",
    ),
    "everything": (
        "image.repository=example.org/ours",
        "image.tag=9.9",
        "image.pullSecrets[0].name=pull",
        "datadog.socketDirectory=/var/run/datadog",
        "flower.historyClaim=flower-history",
        "telemetry.OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4318",
        "migrate.topics=true",
        "monitoring.dashboard=true",
        "monitoring.labels.release=prometheus",
        "settings.REPLAYS_KEY_PREFIX=mine",
        "reader.nodeSelector.pool=replays",
        "worker.tolerations[0].key=replays",
        "worker.tolerations[0].operator=Exists",
        "worker.queues.gcs.resources.limits.memory=2Gi",
        "secret=ours",
        "sharedKey.enabled=true",
        "sharedKey.unsealed=accept",
        "extraVolumes[0].name=ca",
        "extraVolumes[0].secret.secretName=our-ca",
        "extraVolumeMounts[0].name=ca",
        "extraVolumeMounts[0].mountPath=/ca",
        "extraEnv[0].name=REPLAYS_SENTRY_DSN",
        "extraEnv[0].valueFrom.secretKeyRef.name=ours",
        "extraEnv[0].valueFrom.secretKeyRef.key=sentry-dsn",
    ),
}


@pytest.fixture(scope="module")
def charts() -> dict[str, list[dict[str, Any]]]:
    """Maps each combination in OPTIONS to its rendered documents."""
    return {
        name: documents_of(rendered(*(word for option in options for word in ("--set", option))))
        for name, options in OPTIONS.items()
    }


@needs_helm
def test_every_combination_of_options_is_valid(charts: dict[str, list[dict[str, Any]]]):
    """The manifests of every combination of options are valid according to the schemas."""
    for name, documents in charts.items():
        assert documents
        for document in documents:
            assert manifest_errors(document) == "", name


@needs_helm
def test_without_keda_the_chart_sets_the_replicas(charts: dict[str, list[dict[str, Any]]]):
    """Without KEDA, the chart sets the number of replicas, because nothing else would set it."""
    documents = charts["without keda"]
    deployments = by_name(documents, "Deployment")

    assert not by_name(documents, "ScaledObject")
    assert by_name(documents, "StatefulSet")["replays-reader"]["spec"]["replicas"] == 5
    workers = [each for name, each in deployments.items() if "worker" in name]
    assert [each["spec"]["replicas"] for each in workers] == [2] * len(VALUES["worker"]["queues"])


@needs_helm
def test_disabled_components_are_absent(charts: dict[str, list[dict[str, Any]]]):
    """If all optional components are disabled, only the readers, the workers and the objects they need are
    rendered.
    """
    kinds = {document["kind"] for document in charts["nothing optional"]}

    assert kinds == {"ConfigMap", "ServiceAccount", "StatefulSet", "Deployment", "Service", "PodDisruptionBudget"}


@needs_helm
def test_values_reach_the_pods(charts: dict[str, list[dict[str, Any]]]):
    """The values for image, socket, collector, prefix, location, memory and the Secret's name reach the pods."""
    documents = charts["everything"]
    worker = by_name(documents, "Deployment")["replays-worker-gcs"]["spec"]["template"]["spec"]
    (container,) = worker["containers"]
    environment = {entry["name"]: entry for entry in container["env"]}
    scaled = by_name(documents, "ScaledObject")["replays-worker-gcs"]["spec"]["triggers"][0]
    (job,) = by_name(documents, "Job").values()

    assert container["image"] == "example.org/ours:9.9"
    assert worker["imagePullSecrets"] == [{"name": "pull"}]
    assert environment["REPLAYS_DATADOG_SOCKET"]["value"] == "/var/run/datadog/dsd.socket"
    assert "REPLAYS_DATADOG_HOST" not in environment
    assert environment["OTEL_EXPORTER_OTLP_ENDPOINT"]["value"] == "http://collector:4318"
    assert environment["REPLAYS_REDIS_URL"]["valueFrom"]["secretKeyRef"]["name"] == "ours"
    assert worker["tolerations"] == [{"key": "replays", "operator": "Exists"}]
    assert container["resources"]["limits"]["memory"] == "2Gi"
    assert {"name": "ca", "mountPath": "/ca"} in container["volumeMounts"]
    assert {"name": "ca", "secret": {"secretName": "our-ca"}} in worker["volumes"]
    assert environment["REPLAYS_SENTRY_DSN"]["valueFrom"]["secretKeyRef"]["key"] == "sentry-dsn"
    assert scaled["metadata"]["listName"] == "mine:celery:flush.gcs"
    assert job["spec"]["template"]["spec"]["containers"][0]["command"][-1] == "--topics"
    assert by_name(documents, "PodMonitor")["replays-reader"]["metadata"]["labels"]["release"] == "prometheus"
    assert "replays-dashboard" in by_name(documents, "ConfigMap")
    reader = by_name(documents, "StatefulSet")["replays-reader"]["spec"]["template"]["spec"]
    assert reader["nodeSelector"] == {"pool": "replays"}


@needs_helm
def test_every_pod_has_the_shared_key(charts: dict[str, list[dict[str, Any]]]):
    """If a shared key is configured, every pod has it, because the entries of a pod without the key would be
    ignored.

    By default no pod has a key.
    """
    by_chart: dict[str, list[dict[str, Any]]] = {name: [] for name in charts}
    for name, documents in charts.items():
        for document in documents:
            spec = document.get("spec", {})
            template = spec.get("jobTemplate", {}).get("spec", spec).get("template", {})
            by_chart[name] += template.get("spec", {}).get("containers", [])

    assert len(by_chart["everything"]) >= len(VALUES["worker"]["queues"]) + 4
    for container in by_chart["everything"]:
        environment = {entry["name"]: entry for entry in container["env"]}
        assert environment["REPLAYS_SHARED_KEY"]["valueFrom"]["secretKeyRef"] == {
            "name": "ours",
            "key": "shared-key",
        }
        assert environment["REPLAYS_SHARED_KEY_UNSEALED"]["value"] == "accept"
    for container in by_chart["without keda"]:
        assert not [entry for entry in container["env"] if "SHARED_KEY" in entry["name"]]


def test_the_values_schema_accepts_the_defaults_and_no_unknown_name():
    """The values schema accepts the defaults, and refuses misspelled names and secrets among the settings.

    helm validates values against this schema during installation.
    """
    import json

    import jsonschema

    schema = json.loads((CHART / "values.schema.json").read_text())
    jsonschema.validate(VALUES, schema)
    assert set(schema["properties"]) - {"global"} == set(VALUES)
    for wrong in (
        {"readers": {}},
        {"keda": {"enable": True}},
        {"settings": {"REPLAYS_CLICKHOUSE_PASSWORD": "x"}},
        {"settings": {"KAFKA_BROKERS": "x"}},
        {"sharedKey": {"key": "x"}},
        {"sharedKey": {"unsealed": "yes"}},
        *({"settings": {f"REPLAYS_{name.upper()}": "x"}} for name in SECRETS),
        {"worker": {"queues": {"gcs": {"queue": "flush.gsc", "scale": {"min": 1, "max": 1}}}}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)
