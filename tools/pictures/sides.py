"""Shows the original and the replayed page side by side, at two points in time in each recording.

    python -m tools.pictures.sides DIRECTORY

The recordings in `tests/recordings` pass through the whole system (`replays-ingest try`) and are played in its
pages. Writes one PNG per recording and point in time, and prints the elements that differ (`structure.py`). The
exit code is 1 if any element differs.
"""

from __future__ import annotations

import argparse
import base64
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
from confluent_kafka import Producer
from playwright.sync_api import Browser, Frame, Page, sync_playwright

from ingest.local.launch import settings_of
from tasks.kafka.options import producer_options
from tools.pictures.originals import MOMENTS, RECORDED, Moment, facts, original, served
from tools.pictures.running import CHROMIUM, run_try_command
from tools.pictures.structure import differences, structure

STORED_SECONDS_MAX = 60.0
SETTLE_MS = 500
# The window is wide enough for the player to show a page of 1024 pixels without scaling it down.
VIEWER: Any = {"width": 1560, "height": 1300}


def values(name: str) -> list[bytes]:
    """Returns the Kafka values of a recording."""
    return [path.read_bytes() for path in sorted((RECORDED / name).glob("segment-*.msgpack"))]


def produce(state: Any) -> None:
    """Sends every recording to the system's topic."""
    settings = settings_of(state["settings"])
    producer = Producer(producer_options(settings))
    for name in MOMENTS:
        for value in values(name):
            producer.produce(settings.kafka_topic, value)
    producer.flush(STORED_SECONDS_MAX)


def address_of(name: str) -> str:
    """Returns the path of a recording in the URLs of the web pages: `PROJECT/REPLAY`."""
    value = msgspec.msgpack.decode(values(name)[0])
    return f"{value['project_id']}/{value['replay_id']}"


def wait_until_stored(page: Page, state: Any, name: str) -> None:
    """Waits until the web pages list every segment as stored."""
    url = f"{state['replays']}/api/replays/{address_of(name)}"
    ends_at = time.monotonic() + STORED_SECONDS_MAX
    while time.monotonic() < ends_at:
        answer = page.request.get(url)
        listed = answer.json()["ingestion"]["segments"] if answer.ok else []
        if sum(one["state"] == "stored" for one in listed) == len(values(name)):
            return
        page.wait_for_timeout(SETTLE_MS)
    raise TimeoutError(f"{name} is not stored after {STORED_SECONDS_MAX:g} s")


def played(page: Page, pages: str, address: str, name: str, moment: Moment) -> Frame:
    """Opens the recording at a point in time on the replay page. `pages`: base URL of the web pages."""
    timeline = page.request.get(f"{pages}/api/replays/{address}/timeline").json()
    seconds = (facts(name)["start"] + moment.after_ms - timeline["start_ms"]) / 1000
    page.goto("about:blank")
    page.goto(f"{pages}/replay/{address}#t={seconds:.3f}")
    page.locator(".replayer-wrapper iframe").wait_for()
    page.locator("#marks .past").first.wait_for()
    frame = page.locator(".replayer-wrapper iframe").element_handle().content_frame()
    assert frame is not None
    before = structure(frame)
    while True:  # style sheets and frames are added after the document
        page.wait_for_timeout(SETTLE_MS)
        now = structure(frame)
        if now == before:
            return frame
        before = now


def frames_shown(frame: Frame) -> int:
    """Returns the number of the last frame of the canvas page, or 0 for other pages."""
    counter = frame.locator("#fr")
    words = counter.inner_text().split() if counter.count() else []
    return int(words[-1]) if words else 0


def side_by_side(browser: Browser, name: str, moment: Moment, before: bytes, after: bytes, path: Path) -> None:
    """Writes the two pictures side by side into one file."""
    pictures = ((f"{name}, moment {moment.name}: original", before), ("played", after))
    data = [(text, base64.b64encode(png).decode()) for text, png in pictures]
    images = "".join(
        f'<figure><figcaption>{text}</figcaption><img src="data:image/png;base64,{png}"></figure>'
        for text, png in data
    )
    style = (
        "body, figure { margin: 0; display: flex; gap: 8px } img { width: 700px } "
        "figure { flex-direction: column; font: 14px sans-serif }"
    )
    page = browser.new_page(viewport={"width": 1408, "height": 600})
    page.set_content(f"<style>{style}</style>{images}")
    path.write_bytes(page.screenshot(full_page=True))
    page.close()


def compare(browser: Browser, page: Page, state: Any, pages: str, name: str, directory: Path) -> list[str]:
    """Takes the screenshots for one recording, and returns the elements that differ."""
    wait_until_stored(page, state, name)
    found: list[str] = []
    for moment in MOMENTS[name]:
        frame = played(page, state["replays"], address_of(name), name, moment)
        picture = page.locator(".replayer-wrapper").screenshot()
        with original(browser, pages, name, moment, frames_shown(frame)) as there:
            lines = differences(structure(frame), structure(there.main_frame))
            before = there.screenshot()
        recorded = RECORDED / name / "original-a.png"
        if moment.name == "a":
            before = recorded.read_bytes()
        side_by_side(browser, name, moment, before, picture, directory / f"{name}-{moment.name}.png")
        found += [f"{name} {moment.name}: {line}" for line in lines]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Shows original and replayed pages side by side.")
    parser.add_argument("directory", type=Path)
    directory: Path = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    with run_try_command() as state, served() as pages, sync_playwright() as playwright:
        produce(state)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport=VIEWER)
        page.goto(state["link"])
        found = [line for name in MOMENTS for line in compare(browser, page, state, pages, name, directory)]
        browser.close()
    for line in found:
        print(line)
    print(f"{2 * len(MOMENTS)} pictures in {directory}; {len(found)} elements differ")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
