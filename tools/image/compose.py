"""Translates the services of docker-compose.yml that are built here into options for `podman run`.

The containers run on the host network, because the embedded stack replaces the servers in the Compose file. All
other options come from the Compose file: command, read-only file system, tmpfs, volumes, capabilities,
environment, health check, stop timeout. An unknown key is an error, because it would otherwise be ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

VARIABLE = re.compile(r"\$\$|\$\{(?P<name>\w+)(?::-(?P<default>[^}]*)|:\?[^}]*)?\}")
# These keys define the start order and the network of containers. The keys are not needed, because containers are
# started explicitly, in the host's network.
IGNORED_KEYS = {"build", "image", "depends_on", "restart", "ports"}
SECONDS = re.compile(r"(\d+)s")
NAMED_VOLUME = re.compile(r"[a-z]+")


@dataclass(frozen=True, slots=True)
class Service:
    """One service. `health`: the command of the service's health check, or empty if there is none. `options`:
    command-line options for `podman run`.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    health: tuple[str, ...] = ()
    stop_seconds: int = 10
    options: tuple[str, ...] = ()

    def moved(self, addresses: Mapping[str, str], ports: Mapping[int, int]) -> Service:
        """Returns the service with the server addresses in its environment, and with the ports in its health check
        replaced as given by `ports`.
        """

        def port(text: str) -> str:
            return re.sub(r":(\d+)\b", lambda found: f":{ports.get(int(found[1]), found[1])}", text)

        return replace(
            self,
            environment={**self.environment, **addresses},
            health=tuple(port(word) for word in self.health),
        )


def built_services(path: Path, variables: Mapping[str, str]) -> dict[str, Service]:
    """Returns the services whose image is built from this repository, by name. Raises ValueError for an unknown
    key.
    """
    services = yaml.safe_load(_filled(path.read_text(), variables))["services"]
    return {name: _service(name, service) for name, service in services.items() if "build" in service}


def third_party_images(path: Path, variables: Mapping[str, str]) -> list[str]:
    """Returns the names of the third-party images, sorted."""
    services = yaml.safe_load(_filled(path.read_text(), variables))["services"].values()
    return sorted(service["image"] for service in services if "build" not in service)


def unresolved_variables(service: Service, hosts: set[str]) -> list[str]:
    """Returns the environment variables that contain one of `hosts`, the host names in the Compose network."""
    words = {
        name: set(re.split(r"[^\w.-]+", re.sub(r"^\w+://", "", value)))
        for name, value in service.environment.items()
    }
    return sorted(name for name, found in words.items() if hosts & found)


def service_names(path: Path, variables: Mapping[str, str]) -> set[str]:
    """Returns the names of all services, which are their host names in the network of the Compose file."""
    return set(yaml.safe_load(_filled(path.read_text(), variables))["services"])


def _filled(text: str, variables: Mapping[str, str]) -> str:
    def value(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        return variables.get(found["name"]) or found["default"] or ""

    return VARIABLE.sub(value, text)


def _service(name: str, service: Mapping[str, Any]) -> Service:
    options: list[str] = []
    health: tuple[str, ...] = ()
    stop_seconds = 10
    for key, value in service.items():
        match key:
            case "read_only":
                # Unlike Docker, Podman mounts a writable /tmp by default.
                options += ["--read-only", "--read-only-tmpfs=false"] if value else []
            case "tmpfs" | "cap_drop" | "security_opt":
                options += [f"--{key.replace('_', '-')}={each}" for each in value]
            case "volumes":
                options += [f"--volume={_directory(name, each)}" for each in value]
            case "stop_grace_period":
                stop_seconds = _seconds(value)
            case "healthcheck":
                kind, *command = value["test"]
                if kind != "CMD":
                    raise ValueError(f"{name}: unsupported kind of health check: {kind}")
                health = tuple(command)
            case "command" | "environment":
                pass
            case _ if key not in IGNORED_KEYS:
                raise ValueError(f"{name}: unknown key {key}")
    environment = {variable: str(text) for variable, text in service["environment"].items()}
    return Service(name, tuple(service["command"]), environment, health, stop_seconds, tuple(options))


def _directory(name: str, volume: str) -> str:
    """Returns the directory at which the service mounts a named volume. Without the name, Podman mounts an
    anonymous volume, which is removed with the container.
    """
    source, _, directory = volume.partition(":")
    if not NAMED_VOLUME.fullmatch(source) or not directory.startswith("/"):
        raise ValueError(f"{name}: {volume} is not a named volume")
    return directory


def _seconds(text: str) -> int:
    found = SECONDS.fullmatch(text)
    if found is None:
        raise ValueError(f"{text} is not a number of seconds")
    return int(found[1])
