"""Validates Kubernetes manifests against the schemas of their kinds.

The kinds that are part of Kubernetes are validated strictly. The schemas of custom resources are our own, and
contain the fields that the manifests use, with the types of the published definitions (KEDA 2.16, Prometheus
operator 0.80). Other fields are refused.
"""

from __future__ import annotations

from typing import Any

import yaml

KUBERNETES_VERSION = "1.33"

TEXT: dict[str, Any] = {"type": "string"}
NUMBER: dict[str, Any] = {"type": "integer"}
TEXTS: dict[str, Any] = {"type": "object", "additionalProperties": TEXT}


def _object(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {**required, **optional},
        "required": list(required),
        "additionalProperties": False,
    }


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1}


SECRET_KEY = _object({"name": TEXT, "key": TEXT})
SPECS: dict[str, dict[str, Any]] = {
    "keda.sh/v1alpha1/ScaledObject": _object(
        {
            "scaleTargetRef": _object({"name": TEXT}, kind=TEXT, apiVersion=TEXT),
            "triggers": _list(
                _object({"type": TEXT, "metadata": TEXTS}, authenticationRef=_object({"name": TEXT}, kind=TEXT))
            ),
        },
        minReplicaCount=NUMBER,
        maxReplicaCount=NUMBER,
        pollingInterval=NUMBER,
        cooldownPeriod=NUMBER,
        # The type of `behavior` is a core type of Kubernetes, HorizontalPodAutoscalerBehavior.
        advanced=_object({"horizontalPodAutoscalerConfig": _object({"behavior": {"type": "object"}})}),
    ),
    "keda.sh/v1alpha1/TriggerAuthentication": _object(
        {"secretTargetRef": _list(_object({"parameter": TEXT, "name": TEXT, "key": TEXT}))}
    ),
    "monitoring.coreos.com/v1/PodMonitor": _object(
        {
            "selector": _object({"matchLabels": TEXTS}),
            "podMetricsEndpoints": _list(
                _object(
                    {"port": TEXT},
                    interval=TEXT,
                    basicAuth=_object({"username": SECRET_KEY, "password": SECRET_KEY}),
                    relabelings=_list(
                        _object({}, action={"enum": ["replace"]}, targetLabel=TEXT, replacement=TEXT)
                    ),
                )
            ),
        }
    ),
    "monitoring.coreos.com/v1/PrometheusRule": _object(
        {
            "groups": _list(
                _object(
                    {
                        "name": TEXT,
                        "rules": _list(
                            _object(
                                {"alert": TEXT, "expr": TEXT}, **{"for": TEXT}, labels=TEXTS, annotations=TEXTS
                            )
                        ),
                    }
                )
            )
        }
    ),
}


def documents_of(text: str) -> list[dict[str, Any]]:
    """Returns the documents of a YAML file or of a renderer's output."""
    return [document for document in yaml.safe_load_all(text) if document]


def manifest_errors(document: dict[str, Any]) -> str:
    """Returns the errors of a manifest as text; the result is empty if there are none."""
    import jsonschema
    import kubernetes_validate

    if document["apiVersion"].startswith("kustomize.config.k8s.io"):
        return ""  # only kubectl reads these files, and another test runs kubectl
    spec = SPECS.get(f"{document['apiVersion']}/{document['kind']}")
    try:
        if spec is not None:
            metadata = _object({"name": TEXT}, namespace=TEXT, labels=TEXTS, annotations=TEXTS)
            whole = _object({"apiVersion": TEXT, "kind": TEXT, "metadata": metadata, "spec": spec})
            jsonschema.validate(document, whole)
        else:
            kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)
    except (
        jsonschema.ValidationError,
        kubernetes_validate.ValidationError,
        kubernetes_validate.SchemaNotFoundError,
    ) as error:
        return (
            f"{document['kind']} {document['metadata']['name']}: {(str(error) or 'unknown kind').splitlines()[0]}"
        )
    return ""
