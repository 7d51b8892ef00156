"""The audit fails if a pinned package has a known vulnerability.

An unreachable network is reported, but does not make the audit fail.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ingest.local.servers.processes import free_port

KNOWN = {
    "id": "GHSA-0000-made-up00",
    "aliases": ["CVE-2026-00001"],
    "summary": "made up for this test",
    "affected": [
        {
            "package": {"name": "badly-kept", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.2.4"}]}],
        }
    ],
}


class Advisories(BaseHTTPRequestHandler):
    """A handler that serves one vulnerability in OSV's format."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = {"vulns": [KNOWN]} if asked["package"]["name"] == "badly-kept" else {}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Suppresses the log."""


@pytest.fixture
def osv_url() -> Iterator[str]:
    """Yields the URL of a server that responds like OSV."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Advisories) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
        server.shutdown()
        thread.join()


def audit(directory: Path, pins: str, *arguments: str) -> tuple[int, str]:
    """Runs the audit, and returns its exit code and output."""
    path = directory / "pins.txt"
    path.write_text(pins)
    command = [sys.executable, "-m", "tools.audit", "--requirements", str(path), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return result.returncode, result.stdout + result.stderr


def test_a_known_vulnerability_fails_and_names_the_fix(tmp_path: Path, osv_url: str):
    """A known vulnerability makes the audit fail; the output contains the vulnerability's ids and the fixed
    version.
    """
    code, output = audit(tmp_path, "badly-kept==1.2.3\nwell-kept==4.5\n", "--osv-url", osv_url)

    assert code == 1, output
    assert "badly-kept 1.2.3: " in output
    assert all(name in output for name in (KNOWN["id"], *KNOWN["aliases"]))
    assert "fixed in 1.2.4" in output
    assert "2 pinned packages checked, 1 with known vulnerabilities" in output


def test_an_accepted_vulnerability_does_not_fail(tmp_path: Path, osv_url: str):
    code, output = audit(tmp_path, "badly-kept==1.2.3\n", "--osv-url", osv_url, "--ignore-vuln", KNOWN["id"])

    assert code == 0, output


def test_without_the_network_it_reports_that_nothing_was_checked(tmp_path: Path):
    """Without network access, the exit code is 0, and the output says that nothing was checked."""
    code, output = audit(tmp_path, "badly-kept==1.2.3\n", "--osv-url", f"http://127.0.0.1:{free_port()}/")

    assert code == 0, output
    assert "NOT checked" in output
    assert "looked up" not in output


def test_a_server_that_never_responds_does_not_block_the_check(tmp_path: Path, osv_url: str):
    """If the server never responds, the audit ends after `--seconds` and reports that nothing was checked."""
    code, output = audit(tmp_path, "badly-kept==1.2.3\n", "--osv-url", osv_url, "--seconds", "0.01")

    assert code == 0, output
    assert "NOT checked" in output
    assert "no response within 0.01 s" in output
