"""Simulates a visitor to the shop of `replays-ingest try`, and records the actions on the page and what the
browser reported.

Clicks and inputs are recorded by this driver. Requests, console messages and navigation are reported by the
browser, not by the SDK.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from playwright.sync_api import ConsoleMessage, Frame, Page, Response

RAGE_CLICKS = 7
# Resolves when the page has not changed for a second. On an idle machine, the rage clicks would otherwise follow a
# change of the page by less than 100 ms, and the SDK then classifies them neither as dead nor as repeated.
QUIET = """() => new Promise((resolve) => {
  let timer = setTimeout(resolve, 1000);
  new MutationObserver(() => { clearTimeout(timer); timer = setTimeout(resolve, 1000); })
    .observe(document, { subtree: true, childList: true, attributes: true, characterData: true });
})"""
VIEWPORT_WIDTH, VIEWPORT_HEIGHT = 1300, 900
STEP_SECONDS_MAX = 60.0


def path_of(url: str) -> str:
    """Returns the URL without scheme and host."""
    return re.sub(r"^https?://[^/]+", "", url)


@dataclass
class PerformedActions:
    """The actions performed, counted by element: its id, or its test id if it has no id.

    `clicks`: single clicks; `bursts`: clicks in quick succession; `dead`: those of `clicks` to which the page did
    not react for seven seconds. `console`: level and text.
    """

    clicks: Counter[str] = field(default_factory=Counter)
    bursts: Counter[str] = field(default_factory=Counter)
    dead: Counter[str] = field(default_factory=Counter)
    inputs: set[str] = field(default_factory=set)
    statuses: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    console: list[tuple[str, str]] = field(default_factory=list)
    navigation: list[str] = field(default_factory=list)

    def watch(self, page: Page) -> None:
        """Records the page's own requests, console messages and navigations."""
        page.on("response", self._response)
        page.on("console", self._message)
        page.on("framenavigated", self._navigated)

    def _response(self, answer: Response) -> None:
        path = path_of(answer.url)
        if path.startswith("/shop/"):
            self.statuses[answer.request.method, path, answer.status] += 1

    def _message(self, message: ConsoleMessage) -> None:
        if message.args:  # the browser's own messages about failed requests have no location
            self.console.append((message.type, message.text))

    def _navigated(self, frame: Frame) -> None:
        path = path_of(frame.url)
        if path.startswith("/?"):  # parts of the shop; loading a whole page is not a navigation within the shop
            self.navigation.append(path)

    def click(self, page: Page, selector: str) -> None:
        """Clicks an element once."""
        page.locator(selector).click()
        self.clicks[_element(selector)] += 1

    def click_rage(self, page: Page, selector: str) -> None:
        """Clicks an element several times within a second."""
        page.locator(selector).click(click_count=RAGE_CLICKS, delay=20)
        self.bursts[_element(selector)] += RAGE_CLICKS

    def type(self, page: Page, selector: str, text: str) -> None:
        """Presses keys one after the other."""
        page.locator(selector).press_sequentially(text)
        self.inputs.add(_element(selector))


def _element(selector: str) -> str:
    return re.sub(r"^(#|\[data-testid=)|\]$", "", selector)


def use_the_shop(page: Page, done: PerformedActions) -> None:
    """Adds an item to the cart, opens the cart, types, fails to check out, draws, and rage-clicks on a broken
    element.
    """
    page.locator("#items button").first.wait_for()
    for tea in ("add-green", "add-pot", "add-green"):
        with page.expect_response("**/shop/cart"):
            done.click(page, f"[data-testid={tea}]")
        page.locator(f"[data-testid={tea}]:enabled").wait_for()
    box = page.locator("#gift").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 30, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 200, box["y"] + 90, steps=12)
    page.mouse.up()
    done.clicks["gift"] += 1
    done.click(page, "#nav-cart")
    done.type(page, "#name", "Ada")
    done.type(page, "#card", "4111")
    with page.expect_response("**/shop/checkout"):
        done.click(page, "#checkout")
    page.get_by_text("Something went wrong").wait_for()
    page.evaluate(QUIET)
    done.click_rage(page, "#coupon")  # the SDK would treat any change to the page as a reaction to these clicks


def click_dead(page: Page, done: PerformedActions) -> None:
    """Waits until the SDK has classified the rage clicks, and clicks once more on the broken element."""
    page.evaluate("() => new Promise((resolve) => addEventListener('verdict', resolve, { once: true }))")
    done.click(page, "#coupon")
    done.dead["coupon"] += 1


def watched(
    page: Page, address: str, replays: str, done: PerformedActions, steps: Callable[[Page, PerformedActions], None]
) -> str:
    """Opens the shop, performs the steps, and presses "Watch yourself".

    Returns the replay id when every sink has stored the replay and the browser shows the replay's page.
    """
    page.set_default_timeout(STEP_SECONDS_MAX * 1000)
    done.watch(page)
    page.goto(address)
    steps(page, done)
    done.click(page, "#watch")
    page.wait_for_url(re.compile(rf"^{re.escape(replays)}/replay/1/[0-9a-f]{{32}}"))
    return re.sub(r"^.*/|[?#].*$", "", page.url)
