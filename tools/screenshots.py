"""Takes the screenshots for docs/images: parked batches in Flower, the operator's page and the list of replays.

    python -m tools.screenshots [--seconds 240] [--to docs/images]

The pages show a real system: an embedded stack, a reader and a worker under load. Halfway through the load,
ClickHouse refuses connections until some batches are parked. The program needs Chromium and the extras `local` and
`dev`.
"""

from __future__ import annotations

import base64
import contextlib
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from confluent_kafka import Producer
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

from ingest.local.fleet import FLEET_DEFAULTS, FLOWER_PASSWORD, Fleet
from ingest.local.launch import CURRENT_INSTALLATION
from ingest.local.load.produce import PROFILES, produce
from ingest.local.servers.fault_proxy import FaultProxy, Refuse
from ingest.local.servers.processes import HOST, free_port, is_listening, wait_until
from ingest.local.stack import Stack
from tasks.connection import connect
from tasks.coordination import Coordination

PARTS = ("kafka", "redis", "gcs", "clickhouse")
PARKED_MIN = 6
WIDE: ViewportSize = {"width": 1400, "height": 900}
PHONE: ViewportSize = {"width": 390, "height": 844}
PHONE_PIXELS_MAX = 2600
SETTINGS = {
    **FLEET_DEFAULTS,
    "REPLAYS_SINKS": "gcs,clickhouse,dead_letter",
    "REPLAYS_BATCH_AGE_SECONDS_MAX": "1",
    "REPLAYS_TASK_RETRIES_MAX": "1",
    "REPLAYS_TASK_BACKOFF_SECONDS": "0.2",
    "REPLAYS_TASK_BACKOFF_SECONDS_MAX": "0.5",
    "REPLAYS_SINK_TIMEOUT_SECONDS": "2",
    "REPLAYS_RETRY_BACKOFF_SECONDS": "60",
    "REPLAYS_RETRY_BACKOFF_SECONDS_MAX": "120",
    "REPLAYS_FLOWER_BASIC_AUTH": FLOWER_PASSWORD,
}


@click.command()
@click.option(
    "--seconds", default=240, show_default=True, type=click.IntRange(30, 3600), help="Load duration, seconds."
)
@click.option("--rate", default=40.0, show_default=True, help="Messages per second.")
@click.option("--to", "folder", default="docs/images", show_default=True, type=click.Path(path_type=Path))
def main(seconds: int, rate: float, folder: Path) -> None:
    """Takes all pictures."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise click.ClickException("no chromium: install Debian's package chromium")
    with (
        tempfile.TemporaryDirectory() as directory,
        _system(Path(directory), seconds, rate) as (pages, flower),
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, path in _pictures(browser, pages, flower, folder):
            click.echo(f"{path}: {name}")
        browser.close()


@contextlib.contextmanager
def _system(directory: Path, seconds: int, rate: float) -> Iterator[tuple[str, str]]:
    """Runs a system with parked batches, and yields the addresses of `web` and of Flower."""
    with Stack(directory / "stack", kafka="tansu") as stack:
        stack.start(PARTS)
        with FaultProxy(stack.settings()["REPLAYS_CLICKHOUSE_URL"], http=True) as proxy:
            fleet = Fleet(stack, SETTINGS, proxies={"clickhouse": proxy})
            fleet.migrate()
            fleet.worker("worker-1")
            fleet.reader("reader-1")
            fleet.flower()
            ended = threading.Event()
            load = threading.Thread(target=_load, args=(fleet, directory, seconds, rate, ended))
            load.start()
            try:
                _break(fleet, proxy, seconds)
                yield _web(fleet, stack), fleet.flower_url
            finally:
                ended.set()
                load.join()


def _load(fleet: Fleet, directory: Path, seconds: int, rate: float, ended: threading.Event) -> None:
    """Produces messages at a steady rate, including a few that cannot be parsed."""
    produce(
        fleet.settings,
        PROFILES["small"],
        int(seconds * rate),
        manifest_path=directory / "manifest.jsonl",
        rate=rate,
        stop=ended.is_set,
    )


def _break(fleet: Fleet, proxy: FaultProxy, seconds: int) -> None:
    """Waits for half of the load's duration, then makes ClickHouse refuse all connections, and waits until
    PARKED_MIN batches are parked.
    """
    time.sleep(seconds / 2)
    producer = Producer({"bootstrap.servers": fleet.settings.kafka_brokers})
    for text in (b"this is no recording", b"\x93\x01\x02\x03", b'{"payload": "json instead of msgpack"}'):
        producer.produce(fleet.settings.kafka_topic, text)
    producer.flush(10)
    proxy.set(Refuse())
    client = connect(fleet.settings)
    coordination = Coordination(client, fleet.settings)
    wait_until(lambda: len(coordination.parked()) >= PARKED_MIN, seconds + 120, "batches to be parked")
    client.close()


def _web(fleet: Fleet, stack: Stack) -> str:
    port = free_port()
    command = [*CURRENT_INSTALLATION.replays_ingest(), "web", "--port", str(port)]
    # `web` does not use the proxy, because the list of replays reads from ClickHouse.
    environment = {**fleet.direct, "REPLAYS_FLOWER_PORT": fleet.flower_url.rpartition(":")[2]}
    stack.children.start("web", command, env=environment)
    wait_until(lambda: is_listening(port), 60, "the pages")
    return f"http://{HOST}:{port}"


def _pictures(browser: Browser, pages: str, flower: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """Takes the pictures one after the other."""
    folder.mkdir(parents=True, exist_ok=True)
    with _opened(browser, flower, WIDE) as page:
        page.goto("/parked")
        page.locator("#select-shown").check()
        yield "Flower, parked batches", _shot(page, folder / "flower-parked.png", height_max=900)
        page.locator("#parked-list tbody a").first.click()
        page.locator("#chords").wait_for()
        yield "Flower, one batch", _shot(page, folder / "flower-batch.png", height_max=1000)
    for name, scheme, size in (
        ("operator", "light", WIDE),
        ("operator-dark", "dark", WIDE),
        ("operator-phone", "light", PHONE),
    ):
        with _opened(browser, pages, size, scheme) as page:
            page.goto("/operate")
            page.locator("#deeds table, #deeds p").wait_for()
            _expect_to_fit(page)
            high = PHONE_PIXELS_MAX if size is PHONE else 1500
            yield (
                f"operator's page, {scheme}, {size['width']} px",
                _shot(page, folder / f"{name}.png", height_max=high),
            )
    with _opened(browser, pages, WIDE) as page:
        page.goto("/")
        page.locator("#replays tbody tr").first.wait_for()
        _expect_to_fit(page)
        yield "list of replays", _shot(page, folder / "list.png", height_max=900)


@contextlib.contextmanager
def _opened(browser: Browser, address: str, size: ViewportSize, scheme: str = "light") -> Iterator[Page]:
    login = base64.b64encode(FLOWER_PASSWORD.encode()).decode()
    options: dict[str, Any] = {"color_scheme": scheme, "extra_http_headers": {"Authorization": f"Basic {login}"}}
    context = browser.new_context(base_url=address, viewport=size, **options)
    page = context.new_page()
    page.set_default_timeout(60_000)
    yield page
    context.close()


def _expect_to_fit(page: Page) -> None:
    """Checks that no element is wider than the window. Raises ClickException."""
    wide = page.evaluate(
        """() => [...document.querySelectorAll("body *")]
            .filter((one) => one.getBoundingClientRect().right > innerWidth + 1)
            .slice(0, 5).map((one) => one.tagName + "#" + one.id + "." + one.className)"""
    )
    if wide:
        raise click.ClickException(f"{page.url} overflows: {wide}")


def _shot(page: Page, path: Path, *, height_max: int) -> Path:
    height = min(height_max, page.evaluate("document.documentElement.scrollHeight"))
    width = page.viewport_size["width"] if page.viewport_size else WIDE["width"]
    page.set_viewport_size({"width": width, "height": height})
    page.screenshot(path=path)
    return path


if __name__ == "__main__":
    sys.exit(main())
