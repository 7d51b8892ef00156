"""Runs reader, workers and Flower from the image with the embedded stack, under load.

During the load, the worker and then the reader are stopped with SIGTERM and replaced, as in an upgrade. At the
end, no message may be missing: `replays-ingest reconcile`, run from the image, compares the topic with the sinks,
and the sinks are compared with the manifest of the load, byte for byte.
"""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

from ingest.local.compare.reconcile import reconcile
from ingest.local.fleet import Fleet
from ingest.local.load.expectation import Expectation
from ingest.local.load.produce import PROFILES, LoadError, ProducedTotals, produce
from ingest.local.servers.processes import HOST, LocalError, free_port, wait_until
from ingest.local.stack import Stack
from tools.image.compose import Service, unresolved_variables
from tools.image.engine import Engine
from tools.image.outcome import ImageDefect, Lines, last_line

SEGMENTS_MAX, RATE = 20_000, 30.0  # the load ends once worker and reader have been replaced
PORTS = (9464, 9465, 5555)
READY_SECONDS_MAX, COMMITTED_SECONDS_MAX, COMMAND_SECONDS_MAX = 60.0, 60.0, 60.0
FLOWER_PASSWORD = "only-for-this-trial"
USER = "10001"
# Without libstdc++ this package silently falls back to its slower implementation in Python.
C_EXTENSION = "import google_crc32c; print(google_crc32c.implementation)"


def breaches(status: str, mounts: str) -> list[str]:
    """Returns the excess privileges of a container's first process, as read from its /proc/PID/status and
    mounts.
    """
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    root = [line.split()[3].split(",") for line in mounts.splitlines() if line.split()[1] == "/"]
    found = []
    if fields["NSpid"].split()[-1] != "1":
        found.append("its command is not process 1")
    if set(fields["Uid"].split()) != {USER}:
        found.append(f"it runs as user {fields['Uid'].split()[0]}, not as {USER}")
    for name in ("CapPrm", "CapEff", "CapBnd"):
        if int(fields[name], 16):
            found.append(f"it has capabilities: {name} {fields[name]}")
    if fields["NoNewPrivs"].strip() != "1":
        found.append("it may gain privileges")
    if not root or "ro" not in root[-1]:
        found.append("its file system is writable")
    return found


class System:
    """The containers of the image, which use the servers of a stack. `hosts`: names that can be resolved only in
    the network of the Compose file.
    """

    def __init__(
        self,
        engine: Engine,
        image: str,
        services: Mapping[str, Service],
        hosts: set[str],
        stack: Stack,
        lines: Lines,
    ) -> None:
        self._engine, self._image, self._lines = engine, image, lines
        self._stack, self._fleet = stack, Fleet(stack)
        self._ports = {port: free_port() for port in PORTS}
        addresses = {
            **stack.settings(),
            "REPLAYS_HTTP_PORT": str(self._ports[9464]),
            "REPLAYS_WORKER_HTTP_PORT": str(self._ports[9465]),
            "REPLAYS_FLOWER_PORT": str(self._ports[5555]),
            # The containers use the host's network, so their ports must listen only on the loopback address.
            **{f"REPLAYS_{part}_HOST": HOST for part in ("HTTP", "WORKER_HTTP", "FLOWER")},
        }
        self._services = {name: service.moved(addresses, self._ports) for name, service in services.items()}
        for name, service in self._services.items():
            if names := unresolved_variables(service, hosts):
                raise ImageDefect(
                    f"{name} would still connect to a container of docker-compose.yml: {', '.join(names)}"
                )
        self._names: dict[str, str] = {}

    def run(self, tag: str) -> None:
        """Runs the whole test. `tag` makes the names of the containers unique.

        Raises ImageDefect or StepNotRun.
        """
        self._run_once("reader", ("replays-ingest", "--help"), "Usage:")
        self._run_once("worker", ("python", "-c", C_EXTENSION), "c\n")
        self._run_once("migrate", self._services["migrate"].command, "")
        for name in ("worker", "reader", "flower"):
            self._start(name, f"{tag}-{name}")
        self._check_flower_password()
        manifest = self._stack.directory / "manifest.jsonl"
        produced = self._replace_under_load(tag, manifest)
        self._check_complete(produced, manifest)
        for name in ("reader", "worker", "flower"):
            self._stop(name)
        self._lines.report_done("SIGTERM ended reader, worker and Flower with exit code 0")

    def _options(self, service: Service) -> list[str]:
        return [*service.options, *(f"--env={name}={value}" for name, value in service.environment.items())]

    def _run_once(self, name: str, command: tuple[str, ...], wanted: str) -> None:
        service = self._services[name]
        options = self._options(service)
        done = self._engine.once(self._image, command, options, seconds=COMMAND_SECONDS_MAX)
        if done.returncode != 0 or wanted not in done.stdout:
            reason = last_line(done.stderr or done.stdout)
            raise ImageDefect(f"{' '.join(command)} ended with {done.returncode}: {reason}")
        self._lines.report_done(f"{' '.join(command)} ended with 0")

    def _start(self, name: str, container: str) -> None:
        """Starts a service and waits until its health check in docker-compose.yml passes."""
        service, engine = self._services[name], self._engine
        engine.start(container, self._image, service.command, self._options(service))
        self._names[name] = container
        self._until(container, lambda: engine.execute(container, service.health), "its health check")
        pid = int(engine.state(container)["Pid"])
        process = Path(f"/proc/{pid}")
        if found := breaches((process / "status").read_text(), (process / "mounts").read_text()):
            raise ImageDefect(f"{name}: {'; '.join(found)}")
        self._lines.report_done(f"{' '.join(service.command)} is healthy as process 1, user {USER}, read-only")

    def _until(self, container: str, condition: Callable[[], bool], what: str) -> None:
        def holds() -> bool:
            if not self._engine.state(container)["Running"]:
                raise ImageDefect(f"{container} exited:\n{self._engine.log_tail(container)}")
            return condition()

        try:
            wait_until(holds, self._engine.clock.seconds_for_step(READY_SECONDS_MAX), what)
        except LocalError as error:
            raise ImageDefect(f"{container}: {error}\n{self._engine.log_tail(container)}") from error

    def _stop(self, name: str) -> None:
        container = self._names.pop(name)
        code = self._engine.stop(container, self._services[name].stop_seconds)
        if code != 0:
            raise ImageDefect(f"{name} ended with {code} after SIGTERM:\n{self._engine.log_tail(container)}")

    def _check_flower_password(self) -> None:
        try:
            with urllib.request.urlopen(f"http://{HOST}:{self._ports[5555]}/workers", timeout=10):
                raise ImageDefect("Flower shows its pages without a password")
        except urllib.error.HTTPError as error:
            if error.code != 401:
                raise ImageDefect(f"Flower responds with {error.code} without a password") from error

    def _replace_under_load(self, tag: str, manifest: Path) -> ProducedTotals:
        """Produces the load, and replaces the worker and the reader while messages arrive."""
        produced: list[ProducedTotals] = []
        errors: list[Exception] = []
        acknowledged = [0]
        over = threading.Event()

        def progress(done: int, _expected: int, _bytes: int) -> None:
            acknowledged[0] = done

        def load() -> None:
            try:
                produced.append(
                    produce(
                        self._fleet.settings, PROFILES["small"], SEGMENTS_MAX,
                        rate=RATE, manifest_path=manifest, progress=progress, stop=over.is_set,
                    )
                )  # fmt: skip
            except LoadError as error:
                errors.append(error)

        thread = threading.Thread(target=load, name="load", daemon=True)
        thread.start()
        try:
            for number, name in enumerate(("worker", "reader"), start=1):
                wait_until(lambda n=number: acknowledged[0] > 50 * n or bool(errors), 60, "the load")  # type: ignore[misc]
                at = acknowledged[0]
                self._stop(name)
                self._start(name, f"{tag}-{name}-2")
                self._lines.report_done(
                    f"SIGTERM to the {name} after {at} messages: exit code 0, and another one took over"
                )
        finally:
            over.set()
            thread.join(90)
        if errors or not produced:
            raise ImageDefect(f"the load: {errors[0] if errors else 'it did not end'}")
        return produced[0]

    def _check_complete(self, produced: ProducedTotals, manifest: Path) -> None:
        try:
            self._fleet.wait_until_committed(
                produced.ends, self._engine.clock.seconds_for_step(COMMITTED_SECONDS_MAX)
            )
        except LocalError as error:
            tails = "\n".join(self._engine.log_tail(name) for name in self._names.values())
            raise ImageDefect(f"{error}\n{tails}") from error
        self._run_once("reader", ("replays-ingest", "reconcile"), "")
        settings = self._fleet.settings
        report = reconcile(settings, Expectation.from_manifest(manifest, settings=settings))
        if not report.ok:
            raise ImageDefect(f"the sinks differ from the produced messages:\n{report.failures()}")
        self._lines.report_done(
            f"{produced.messages} messages ({produced.segments} segments, {produced.rejects} malformed, "
            f"{produced.duplicates} sent twice), none of them missing in any sink"
        )
