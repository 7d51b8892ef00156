"""Tests what a viewer sees in Chromium when watching recordings made by real SDKs: canvases, files from other
servers, links, keys.

The tests in this file share one browser.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from playwright.sync_api import Frame, Page

from ingest.settings import Settings
from tests.kit.browser import browser, needs_chromium
from tests.kit.paths import ROOT
from tests.kit.recordings import RECORDINGS
from tests.kit.stored_replays import message, store_replays

pytestmark = needs_chromium
RECORDED = ROOT / "tests" / "recordings"
CANVAS, SHOP = (next(item for item in RECORDINGS if item.name == name) for name in ("v11-canvas", "v11-shop"))
AT_MS = 1_795_000_000_000
MADE, LONG, PROJECT = "6" * 32, "7" * 32, 7
LONG_SEGMENTS = 720
# The maximum mean difference, on a scale from 0 to 255, between two pictures of the same canvas that were taken a
# few frames apart. If the played canvases were blank, the differences would be 17 and 120.
DIFFERENCE_MAX = 10.0
# One pixel with the color rgb(255, 0, 0).
RED_PIXEL_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="


@pytest.fixture(scope="module")
def page(separate_settings: Settings) -> Iterator[Page]:
    """A browser page with a signed-in user, after some recordings have been stored."""
    store_replays(separate_settings, CANVAS.values)
    store_replays(separate_settings, SHOP.values, first_offset=50)
    store_replays(
        separate_settings, [(RECORDED / "cases" / "cross-origin-css.msgpack").read_bytes()], first_offset=100
    )
    store_replays(separate_settings, [message(MADE, 0, made_recording(), project_id=PROJECT)], first_offset=200)
    store_replays(separate_settings, long_recording(), first_offset=300)
    with browser(separate_settings) as opened:
        yield opened


def frame_event(node_id: int, at_ms: int, kind: str = "image/png", data: str = RED_PIXEL_PNG) -> dict[str, Any]:
    """Returns the event that replayCanvasIntegration records for a canvas."""
    blob = {"rr_type": "Blob", "type": kind, "data": [{"rr_type": "ArrayBuffer", "base64": data}]}
    image = {"rr_type": "ImageBitmap", "args": [blob]}
    commands = [{"property": "clearRect", "args": []}, {"property": "drawImage", "args": [image, 0, 0]}]
    return {
        "type": 3,
        "timestamp": at_ms,
        "data": {"source": 9, "id": node_id, "type": 0, "commands": commands},
    }


def made_recording() -> list[dict[str, Any]]:
    """A recording with canvases that are sized by a style sheet, resized, drawn by commands, or filled with an
    image of a different type.
    """

    def node(number: int, tag: str, *children: dict[str, Any], **attributes: str) -> dict[str, Any]:
        return {"type": 2, "id": number, "tagName": tag, "attributes": attributes, "childNodes": list(children)}

    rule = {
        "type": 3,
        "id": 6,
        "textContent": "canvas { background: white } #wide { width: 50% }",
        "isStyle": True,
    }
    body = node(
        4,
        "body",
        node(10, "canvas", id="wide", width="200", height="100"),
        node(11, "canvas", id="resized", style="border: 1px solid"),
        node(12, "canvas", id="commands", width="20", height="20"),
        node(13, "canvas", id="markup", width="20", height="20"),
        style="margin: 0",
    )
    document = {"type": 0, "id": 1, "childNodes": [node(2, "html", node(3, "head", node(5, "style", rule)), body)]}
    mutation = {"source": 0, "texts": [], "removes": [], "adds": []}
    resized = {"id": 11, "attributes": {"width": "40", "height": "30", "style": "border: 2px solid"}}
    markup = base64.b64encode(b'<svg xmlns="http://www.w3.org/2000/svg"/>').decode()
    return [
        {"type": 4, "timestamp": AT_MS, "data": {"href": "https://a.example/", "width": 800, "height": 600}},
        {"type": 2, "timestamp": AT_MS + 1, "data": {"node": document, "initialOffset": {"top": 0, "left": 0}}},
        frame_event(10, AT_MS + 10),
        frame_event(11, AT_MS + 10),
        {"type": 3, "timestamp": AT_MS + 20, "data": {**mutation, "attributes": [resized]}},
        {
            "type": 3,
            "timestamp": AT_MS + 30,
            "data": {"source": 9, "id": 12, "type": 0, "property": "fillRect", "args": [0, 0, 20, 20]},
        },
        frame_event(13, AT_MS + 30, "image/svg+xml", markup),
        frame_event(99, AT_MS + 30),
        {
            "type": 3,
            "timestamp": AT_MS + 40,
            "data": {**mutation, "attributes": [{"id": 2, "attributes": {"lang": "x"}}]},
        },
    ]


def long_recording() -> list[bytes]:
    """Returns a one-hour recording: 720 segments of 40 kB each. Every change sets the text of the element `count`
    to the number of the segment, and the text of another element to a longer text.
    """

    def element(number: int, tag: str, *children: dict[str, Any], **attributes: str) -> dict[str, Any]:
        return {"type": 2, "id": number, "tagName": tag, "attributes": attributes, "childNodes": list(children)}

    text, filler = {"type": 3, "id": 6, "textContent": "0"}, {"type": 3, "id": 8, "textContent": ""}
    body = element(4, "body", element(5, "b", text, id="count"), element(7, "p", filler))
    document = {"type": 0, "id": 1, "childNodes": [element(2, "html", element(3, "head"), body)]}
    values: list[bytes] = []
    for number in range(LONG_SEGMENTS):
        at_ms = AT_MS + 5000 * number
        texts = [{"id": 6, "value": str(number)}, {"id": 8, "value": f"{number} " * 100}]
        changed = {"source": 0, "texts": texts, "removes": [], "adds": [], "attributes": []}
        crumb = {"category": "console", "timestamp": at_ms / 1000, "message": f"segment {number}"}
        events: list[dict[str, Any]] = [
            {"type": 4, "timestamp": at_ms, "data": {"href": "https://a.example/", "width": 800, "height": 600}},
            {"type": 2, "timestamp": at_ms, "data": {"node": document, "initialOffset": {"top": 0, "left": 0}}},
        ][: 2 * (number == 0)]
        events += [{"type": 3, "timestamp": at_ms + 50 * step, "data": changed} for step in range(80)]
        events.append({"type": 5, "timestamp": at_ms, "data": {"tag": "breadcrumb", "payload": crumb}})
        values.append(message(LONG, number, events, project_id=PROJECT))
    return values


def replay_frame(page: Page) -> Frame:
    """Returns the frame that displays the recording."""
    page.locator(".replayer-wrapper iframe").wait_for()
    return page.frames[-1]


def canvases(page: Page) -> dict[str, dict[str, Any]]:
    """Returns the box and the picture of every canvas, by id."""
    found: list[dict[str, Any]] = replay_frame(page).evaluate(
        """() => [...document.querySelectorAll("canvas")].map((node) => ({
            id: node.id, width: node.offsetWidth, height: node.offsetHeight, x: node.offsetLeft, y: node.offsetTop,
            image: getComputedStyle(node).backgroundImage,
        }))"""
    )
    return {item["id"]: item for item in found}


def difference(page: Page, played: bytes, original: bytes, area: tuple[int, int, int, int]) -> float:
    """Returns the mean difference, over all channels, between a picture and the area (x, y, width, height) of
    another.
    """
    blank = page.context.new_page()
    try:
        return float(
            blank.evaluate(
                """async ([played, original, [x, y, width, height]]) => {
                    const pixels = async (base64, ...from) => {
                        const image = new Image();
                        image.src = `data:image/png;base64,${base64}`;
                        await image.decode();
                        const canvas = Object.assign(document.createElement("canvas"), { width, height });
                        const context = canvas.getContext("2d");
                        context.drawImage(image, ...(from.length ? from : [0, 0, image.width, image.height]),
                            0, 0, width, height);
                        return context.getImageData(0, 0, width, height).data;
                    };
                    const [a, b] = [await pixels(played), await pixels(original, x, y, width, height)];
                    return a.reduce((sum, value, index) => sum + Math.abs(value - b[index]), 0) / a.length;
                }""",
                [base64.b64encode(played).decode(), base64.b64encode(original).decode(), area],
            )
        )
    finally:
        blank.close()


def test_canvases_keep_their_boxes_and_show_the_recorded_frames(page: Page):
    """At the position of a click, the page looks like the screenshot taken at that time."""
    page.goto(f"/replay/{project_of(CANVAS.values[0])}/{CANVAS.facts['replayId']}")
    page.locator("#marks [data-kind=click]").first.click()
    frame = replay_frame(page)
    frame.wait_for_function(
        "() => getComputedStyle(document.getElementById('g')).backgroundImage.startsWith('url')"
    )
    found = canvases(page)

    assert [(item["width"], item["height"]) for item in found.values()] == [(404, 244), (204, 244)]
    assert all(item["image"].startswith('url("data:image/webp;base64,') for item in found.values())
    original = (RECORDED / "v11-canvas" / "original-a.png").read_bytes()
    for item in found.values():
        area = (item["x"], item["y"], item["width"], item["height"])
        assert difference(page, frame.locator(f"#{item['id']}").screenshot(), original, area) < DIFFERENCE_MAX


def test_a_canvas_is_sized_by_style_sheets_and_resized_as_recorded(page: Page):
    """A canvas keeps its aspect ratio, and resizing it clears its content.

    The page reports canvases that stay empty because only scripts can draw their content.
    """
    page.goto(f"/replay/{PROJECT}/{MADE}")
    frame = replay_frame(page)
    page.locator(".rr-controller__btns button").first.click()
    frame.locator("html[lang=x]").wait_for(state="attached")
    found = canvases(page)

    assert {name: (item["width"], item["height"]) for name, item in found.items()} == {
        "wide": (400, 200),
        "resized": (44, 34),
        "commands": (20, 20),
        "markup": (20, 20),
    }
    assert found["wide"]["image"] == f'url("data:image/png;base64,{RED_PIXEL_PNG}")'
    assert {found[name]["image"] for name in ("resized", "commands", "markup")} == {"none"}
    page.get_by_text("2 canvas elements stay empty").wait_for()


def test_a_link_opens_a_moment_and_keys_move_from_there(page: Page):
    """A link with `#t=N` opens the replay N seconds after its start, and the R key jumps to the rage click."""
    page.goto(f"/replay/{project_of(SHOP.values[0])}/{SHOP.facts['replayId']}#t=12.0")
    rage = page.locator("#marks [data-kind=rage_click]")
    page.wait_for_function("() => document.querySelectorAll('#marks .past').length > 3")
    assert page.locator("#marks [data-kind=rage_click].past").count() == 0

    page.wait_for_function("() => document.activeElement === document.body")  # Playing does not move the focus.
    page.keyboard.press("r")
    page.locator("#marks [data-kind=rage_click].past").wait_for()
    (minutes, seconds) = rage.locator(".number").inner_text().split(":")
    address = page.evaluate("() => location.hash")
    assert address.startswith("#t=")
    assert abs(float(address.removeprefix("#t=")) - 60 * int(minutes) - int(seconds)) <= 0.5

    page.keyboard.press("ArrowLeft")
    page.wait_for_function("() => !document.querySelector('#marks [data-kind=rage_click].past')")
    counted = page.locator("#kinds button")
    buttons = dict(text.rsplit(" ", 1) for text in counted.all_inner_texts())
    clicks = sum(int(buttons.get(kind, 0)) for kind in ("click", "slow click", "dead click", "rage click"))
    assert f"{clicks}, 2 of them dead, 1 of those rage" in page.locator("#facts").inner_text()
    assert "ada@example.org" in page.locator("#summary").inner_text()


def test_errors_and_captured_requests_are_listed_and_ticks_have_a_legend(page: Page):
    """An error is listed with its id.

    The headers and bodies of a request can be expanded, and the memory plot has axes.
    """
    page.goto(f"/replay/{project_of(SHOP.values[0])}/{SHOP.facts['replayId']}")
    page.locator("#ticks .error").first.wait_for(state="attached")
    ids = {
        one
        for value in SHOP.values
        for one in json.loads(msgspec.msgpack.decode(value)["replay_event"])["error_ids"]
    }
    listed = page.locator("#marks [data-kind=error]").all_inner_texts()
    assert {one for one in ids if any(one in text for text in listed)} == ids
    assert len(listed) == len(ids) == 2

    echo = page.locator("#marks li", has_text="method POST").filter(has_text="/api/echo").first
    echo.locator("summary").click()
    shown = echo.locator("pre").all_inner_texts()
    assert "x-shop: 1" in shown[0]
    assert '"item": "boots"' in shown[0]
    assert "content-length: 37" in shown[1]

    legend = page.locator("#legend span").all_inner_texts()
    assert {"click", "dead click", "rage click", "error", "navigation"} <= {text.strip() for text in legend}
    bar, ticks = (page.locator(name).bounding_box() for name in (".rr-progress", "#ticks"))
    assert bar is not None
    assert ticks is not None
    assert abs(bar["x"] - ticks["x"]) <= 1
    assert abs(bar["width"] - ticks["width"]) <= 1
    assert [len(page.locator(f".axes .{name} span").all()) for name in ("vertical", "horizontal")] == [3, 5]


def test_a_long_recording_is_played_page_by_page(page: Page):
    """A one-hour recording of 720 segments is fetched in a few requests, the first of which suffices to show a
    picture.
    """
    paths: list[str] = []
    page.on("request", lambda request: paths.append(request.url.partition(LONG)[2]))
    page.goto(f"/replay/{PROJECT}/{LONG}#t=3500.0")
    page.wait_for_function("() => document.querySelectorAll('#marks .past').length > 500")
    recording = [path for path in paths if path.startswith("/recording")]
    page.locator(".rr-timeline__time").last.get_by_text("59:5").wait_for()

    assert recording[0] == "/recording?from_segment=0"
    assert 2 <= len(recording) <= 4
    assert not [path for path in paths if path.startswith("/segments/")]
    assert replay_frame(page).locator("#count").inner_text() == "699"


def test_an_unknown_replay_is_not_found(page: Page):
    """The page reports that the replay is unknown and stops loading."""
    page.goto(f"/replay/{PROJECT}/{'e' * 32}")

    page.get_by_role("alert").get_by_text(f"no replay {'e' * 32} in project {PROJECT}").wait_for()
    assert page.locator("#stage").inner_text() == "Nothing to play."


def test_files_of_other_servers_are_counted_and_load_only_on_request(page: Page):
    """Files from other servers load only after a click on the link.

    After the click, this page (and no other page) may load images, styles, fonts and media from these servers, but
    no scripts or frames.
    """
    case = (RECORDED / "cases" / "cross-origin-css.msgpack").read_bytes()
    path = f"/replay/{project_of(case)}/{msgspec.msgpack.decode(case)['replay_id']}"
    page.goto(path)
    page.get_by_text("Blocked: 3 files").wait_for()
    assert "localhost:18765 (2), 127.0.0.1:18765 (1)" in page.locator("#notices").inner_text()
    assert canvases(page)["chart"]["height"] == 152

    with page.expect_navigation() as allowed:
        page.locator("#elsewhere").click()
    page.get_by_text("Allowed from other servers: 3 files").wait_for()
    rules = allowed.value.headers["content-security-policy"].split("; ")
    assert [rule.split()[0] for rule in rules if "localhost:18765 127.0.0.1:18765" in rule] == [
        "style-src",
        "img-src",
        "font-src",
        "media-src",
    ]


def project_of(value: bytes) -> int:
    """Returns the project of a Kafka value."""
    return int(msgspec.msgpack.decode(value)["project_id"])
