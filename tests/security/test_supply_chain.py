"""Only approved software runs: every file in the image has a hash, images are pinned exactly, and egress is
restricted.
"""

from __future__ import annotations

import ipaddress
import re
from importlib import metadata

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.kit.paths import ROOT

IMAGE = ROOT / "deploy" / "image"
PIN_FILES = ("requirements.txt", "build.txt")
EXTRAS = {"requirements.txt": ("", "otel", "otel-grpc", "sentry"), "build.txt": ("",)}
ROOTS = {"requirements.txt": "replays-ingest", "build.txt": "hatchling"}
PIN = re.compile(r"^([a-z0-9.\[\]-]+)==([^ ;\\]+)", re.MULTILINE)
PRIVATE_GOOGLE_ACCESS = (ipaddress.ip_network("199.36.153.4/30"), ipaddress.ip_network("199.36.153.8/30"))


def pins(text: str) -> dict[str, str]:
    """Maps each pinned package to its version."""
    return {canonicalize_name(name.partition("[")[0]): version for name, version in PIN.findall(text)}


def dependencies_of(name: str, extras: tuple[str, ...], found: set[str]) -> set[str]:
    """Adds the distribution's installed dependencies, direct and indirect, to `found`, and returns it."""
    for text in metadata.requires(name) or []:
        wanted = Requirement(text)
        if wanted.marker and not any(wanted.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        other = canonicalize_name(wanted.name)
        if other not in found:
            found.add(other)
            dependencies_of(other, ("", *wanted.extras), found)
    return found


@pytest.mark.parametrize("name", PIN_FILES)
def test_every_file_that_the_image_installs_has_a_hash(name: str):
    """Every file in the image has a hash.

    Versions equal those in constraints.txt, all dependencies are listed, and no list contains the address of a
    package index.
    """
    text = (IMAGE / name).read_text()
    entries = re.split(r"\n(?=[a-z])", text[text.index("\n", text.rindex("\n#") + 1) + 1 :])
    constrained = {
        canonicalize_name(line.partition("==")[0]): line.partition("==")[2]
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }

    assert all("--hash=sha256:" in entry for entry in entries)
    assert len(entries) == len(pins(text))
    assert dependencies_of(ROOTS[name], EXTRAS[name], set()) - {"setuptools"} <= pins(text).keys() | {"hatchling"}
    known = {package: version for package, version in pins(text).items() if package in constrained}
    assert known == {package: constrained[package] for package in known}
    assert not re.search(r"://|index-url|find-links|trusted-host", text)


def test_the_image_installs_nothing_else():
    """Every pip command of the image build that may reach an index checks hashes."""
    dockerfile = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    installs = re.findall(r"pip (?:--python \S+ )?(?:install|wheel|download)[^&\n]*", dockerfile)

    assert len(installs) >= 4
    for command in installs:
        assert "--require-hashes" in command or "--no-index" in command, command
    assert not re.search(r"://|index-url|curl|wget|ADD ", dockerfile)


def test_every_image_is_exact():
    """Every image is named by a digest, or by a tag with a complete version.

    A digest can be passed to the build without editing a file.
    """
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    images = [service["image"] for service in compose["services"].values() if "image" in service]
    dockerfile = (ROOT / "Dockerfile").read_text()
    images += re.findall(r"^ARG PYTHON_IMAGE=(\S+)", dockerfile, re.MULTILINE)

    for image in images:
        ours = image == "replays-ingest:local"
        assert ours or re.search(r"@sha256:[0-9a-f]{64}$|:v?\d+\.\d+\.\d+", image), image
    assert set(re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)) == {"${PYTHON_IMAGE}"}


def test_nothing_reaches_the_whole_internet():
    """Egress is allowed for HTTPS only to Google's private addresses, and for DNS only within the cluster."""
    policy = yaml.safe_load((ROOT / "deploy" / "kubernetes" / "network-policy.yaml").read_text())
    for rule in policy["spec"]["egress"]:
        ports = {port["port"] for port in rule["ports"]}
        blocks = [ipaddress.ip_network(to["ipBlock"]["cidr"]) for to in rule.get("to", []) if "ipBlock" in to]
        assert all(block.prefixlen >= 30 for block in blocks)
        # Port 8125 is for metrics to the node's agent, whose address no selector matches.
        assert "to" in rule or ports == {8125}
        if 443 in ports:
            assert set(blocks) == set(PRIVATE_GOOGLE_ACCESS)
