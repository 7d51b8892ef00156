"""Playing a hostile recording opens no connection: every trick in the recording points to one server, and this
server receives nothing.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from ingest.settings import Settings
from tests.kit.browser import browser, needs_chromium
from tests.kit.stored_replays import message, store_replays
from tests.kit.web_pages import running, signed_in

AT_MS = 1_780_000_000_000
REPLAY, PROJECT = "5" * 32, 7
pytestmark = needs_chromium


class Listener:
    """A server that records the first bytes of every connection."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.received: list[bytes] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(0.5)
                try:
                    self.received.append(connection.recv(200))
                except OSError:
                    self.received.append(b"")

    def close(self) -> None:
        self._socket.close()


def element(number: int, tag: str, **attributes: object) -> dict[str, object]:
    """Returns a recorded element. Underscores at the end of names are removed, and all others become hyphens."""
    named = {name.rstrip("_").replace("__", "-"): value for name, value in attributes.items()}
    return {"type": 2, "id": number, "tagName": tag, "attributes": named, "childNodes": []}


def tricks(target: str, first: int) -> list[dict[str, object]]:
    """Returns elements, each of which attempts to connect to the target."""
    made = [
        element(0, "iframe", src=f"{target}/iframe"),
        element(0, "iframe", rr_src=f"{target}/rr_src"),
        element(0, "IFRAME", SRC=f"{target}/upper"),
        element(0, "iframe", srcdoc=f"<img src={target}/srcdoc>"),
        element(0, "frame", src=f"{target}/frame"),
        element(0, "embed", src=f"{target}/embed"),
        element(0, "object", data=f"{target}/object"),
        element(0, "img", src=f"{target}/img", srcset=f"{target}/srcset 2x"),
        element(0, "video", src=f"{target}/video", poster=f"{target}/poster", preload="auto"),
        element(0, "audio", src=f"{target}/audio", preload="auto", autoplay=True),
        element(0, "script", src=f"{target}/script"),
        element(0, "meta", http__equiv="refresh", content=f"0;url={target}/refresh"),
        element(0, "base", href=f"{target}/base/"),
        element(0, "div", style=f"background:url({target}/background)"),
        element(0, "input", type="image", src=f"{target}/input"),
        element(0, "a", href=f"{target}/a", ping=f"{target}/ping"),
        element(0, "body", background=f"{target}/body"),
    ]
    for rel in (
        "preconnect",
        "dns-prefetch",
        "prefetch",
        "preload",
        "modulepreload",
        "prerender",
        "icon",
        "manifest",
    ):
        made.append(element(0, "link", rel=rel, href=f"{target}/{rel}", as_="image"))
    made.append(element(0, "link", rel="stylesheet", href=f"{target}/stylesheet"))
    made.append(element(0, "link", rel="stylesheet preconnect", href=f"{target}/both"))
    for number, node in enumerate(made):
        node["id"] = first + number
    return made


def recording(target: str) -> list[dict[str, object]]:
    """Returns a recording with every trick in its snapshot, in a mutation, and in attributes of harmless
    elements.
    """
    style = element(5, "style")
    style["childNodes"] = [
        {
            "type": 3,
            "id": 6,
            "textContent": f"@import url({target}/import); @font-face{{font-family:f;"
            f"src:url({target}/font)}} body{{font-family:f}}",
            "isStyle": True,
        }
    ]
    harmless = [
        element(300, "iframe"),
        element(301, "link"),
        element(302, "img"),
        element(303, "link", rel="preconnect"),
    ]
    head, body = element(3, "head"), element(4, "body")
    head["childNodes"], body["childNodes"] = [style], [*tricks(target, 100), *harmless]
    page = element(2, "html")
    page["childNodes"] = [head, body]
    document = {"type": 0, "id": 1, "childNodes": [page]}
    adds = [{"parentId": 4, "nextId": None, "node": node} for node in tricks(target, 200)]
    later = [
        {"id": 300, "attributes": {"src": f"{target}/later-iframe"}},
        {"id": 301, "attributes": {"rel": "preconnect", "href": f"{target}/later-link"}},
        {"id": 302, "attributes": {"src": f"{target}/later-img"}},
        {"id": 303, "attributes": {"href": f"{target}/later-href"}},
    ]
    mutation = {"source": 0, "texts": [], "removes": [], "adds": adds, "attributes": []}
    return [
        {"type": 4, "timestamp": AT_MS, "data": {"href": f"{target}/page", "width": 800, "height": 600}},
        {"type": 2, "timestamp": AT_MS + 1, "data": {"node": document, "initialOffset": {"top": 0, "left": 0}}},
        {"type": 3, "timestamp": AT_MS + 200, "data": mutation},
        {"type": 3, "timestamp": AT_MS + 300, "data": {**mutation, "adds": [], "attributes": later}},
        {
            "type": 3,
            "timestamp": AT_MS + 900,
            "data": {**mutation, "adds": [], "attributes": [{"id": 2, "attributes": {"data-over": "yes"}}]},
        },
    ]


@pytest.fixture
def listener() -> Iterator[Listener]:
    """A server that is the target of a hostile recording."""
    made = Listener()
    yield made
    made.close()


def test_a_hostile_recording_makes_no_connection(stored: Settings, listener: Listener):
    """When a hostile recording is played to its end, no server receives a request."""
    store_replays(stored, [message(REPLAY, 0, recording(listener.address), project_id=PROJECT)])
    with browser(stored) as page:
        page.goto(f"/replay/{PROJECT}/{REPLAY}")
        frame = page.frame_locator(".replayer-wrapper iframe").locator("html")
        page.locator(".rr-controller__btns button").first.click()
        page.frame_locator(".replayer-wrapper iframe").locator("html[data-over=yes]").wait_for()
        assert frame.locator("iframe").count() >= 1  # The recorded iframe is shown, but loads nothing.
        assert listener.received == []

        page.get_by_text("Load images, styles and fonts").click()
        page.locator(".rr-controller__btns button").first.click()
        page.frame_locator(".replayer-wrapper iframe").locator("html[data-over=yes]").wait_for()
    paths = {request.split(b" ")[1].decode() for request in listener.received if request}
    assert "/img" in paths or "/srcset" in paths
    assert not paths & {
        f"/{name}"
        for name in (
            "iframe",
            "rr_src",
            "upper",
            "frame",
            "embed",
            "object",
            "script",
            "refresh",
            "later-iframe",
            "srcdoc",
            "preconnect",
            "prefetch",
        )
    }


def test_a_link_from_elsewhere_allows_nothing(stored: Settings, listener: Listener):
    """A link from another site cannot permit the loading of files: its `elsewhere` parameter has no effect."""
    store_replays(stored, [message(REPLAY, 0, recording(listener.address), project_id=PROJECT)])
    with browser(stored) as page:
        answer = page.goto(f"/replay/{PROJECT}/{REPLAY}?elsewhere={listener.address.removeprefix('http://')}")

    assert answer is not None
    assert "127.0.0.1:" not in answer.headers["content-security-policy"]
    assert json.dumps(listener.received, default=repr) == "[]"


def page_with(nodes: list[dict[str, object]]) -> list[dict[str, object]]:
    """Returns a recording with the given nodes in the page's body, and an attribute that is set at the end of the
    recording.
    """
    page, head, body = element(2, "html"), element(3, "head"), element(4, "body")
    page["childNodes"], body["childNodes"] = [head, body], nodes
    document = {"type": 0, "id": 1, "childNodes": [page]}
    over = {"source": 0, "texts": [], "removes": [], "adds": []}
    return [
        {"type": 4, "timestamp": AT_MS, "data": {"href": "https://shop.example/", "width": 800, "height": 600}},
        {"type": 2, "timestamp": AT_MS + 1, "data": {"node": document, "initialOffset": {"top": 0, "left": 0}}},
        {
            "type": 3,
            "timestamp": AT_MS + 900,
            "data": {**over, "attributes": [{"id": 2, "attributes": {"data-over": "yes"}}]},
        },
    ]


def test_the_permission_covers_the_named_hosts_only(stored: Settings, listener: Listener):
    """A recording's images come from two hosts. The page lists only one of them, because the other host's URLs are
    written in unusual ways.

    After the user permits files from other servers, files load only from the listed host.
    """
    hidden = Listener()
    address = hidden.address.replace("//", "\\\\")
    unnamed = [
        element(11, "img", src=address + "/backslash"),
        element(12, "div", style=f'background:image-set("{hidden.address}/set" 1x)'),
        element(13, "div", style=f"background:u\\72l({hidden.address}/escape)"),
        element(14, "img", src=hidden.address.replace("http", "ht\ntp") + "/newline"),
    ]
    for node in unnamed:
        node["childNodes"] = [{"type": 3, "id": 20 + int(str(node["id"])), "textContent": "text"}]
    nodes = [*unnamed, element(10, "img", src=f"{listener.address}/named")]
    store_replays(stored, [message("6" * 32, 0, page_with(nodes), project_id=PROJECT)])
    with browser(stored) as page:
        page.goto(f"/replay/{PROJECT}/{'6' * 32}")
        page.get_by_text("Load images, styles and fonts").click()
        page.get_by_text("Allowed from other servers").wait_for()
        page.locator(".rr-controller__btns button").first.click()
        page.frame_locator(".replayer-wrapper iframe").locator("html[data-over=yes]").wait_for()
        named = page.locator("#notices").inner_text()
    hidden.close()

    assert hidden.address.removeprefix("http://") not in named  # a listed host would be permitted
    assert b"/named" in b"".join(listener.received)
    assert hidden.received == []


@pytest.mark.parametrize("host", ["https:", "*", "a;script-src", "'unsafe-eval'", "data:", "a b", "", "a:b"])
def test_the_permission_holds_host_names_only(stored: Settings, host: str):
    """Each `elsewhere` parameter of a link must be a host name with an optional port; other values are refused."""
    with running(stored) as announced:
        address, link = announced.get(timeout=30)
        path = f"/replay/{PROJECT}/{REPLAY}?elsewhere="
        inside = signed_in(address, link)
        answer = inside.get(path + quote(host), Sec_Fetch_Site="same-origin")
        usual = inside.get(path + "cdn.example:8443", Sec_Fetch_Site="same-origin")

    assert answer.status == 400
    assert "img-src data: blob: cdn.example:8443;" in usual.headers["content-security-policy"]


def test_a_recording_loads_nothing_of_this_server(stored: Settings):
    """A recording loads nothing from this server, so it can neither use the session nor attempt a login.

    The policy has to allow media and styles from the pages' own origin, but the server refuses a recording's
    requests for them.
    """
    paths = ("/login?token=guess", "/api/operate/letters", f"/api/replays/{PROJECT}/{'7' * 32}/segments/0?raw=1")
    nodes = [element(10 + n, "video", src=path, preload="auto") for n, path in enumerate(paths)]
    nodes += [element(20 + n, "link", rel="stylesheet", href=path) for n, path in enumerate(paths)]
    store_replays(stored, [message("7" * 32, 0, page_with(nodes), project_id=PROJECT)])
    answers: list[tuple[str, int]] = []
    with browser(stored) as page:
        page.on("response", lambda response: answers.append((response.url, response.status)))
        page.goto(f"/replay/{PROJECT}/{'7' * 32}")
        page.locator(".rr-controller__btns button").first.click()
        page.frame_locator(".replayer-wrapper iframe").locator("html[data-over=yes]").wait_for()

    statuses = [status for url, status in answers if url.endswith(paths)]
    assert len(statuses) >= len(paths)
    assert set(statuses) == {403}
