"""Takes screenshots of `replays-ingest try`, from the start of the command until a recording is played, and
prints the time of each screenshot.

    python -m tools.pictures.trial docs/images

Writes `try-shop.png`, `try-waiting.png` and `try-replay.png`, and prints the seconds since the command started.
The session has a rage click, a failed request, an error and a drawing.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

from tools.pictures.running import CHROMIUM, run_try_command

SIZE: Any = {"width": 1200, "height": 760}
RAGE_CLICKS = 7


def use_the_shop(page: Page) -> None:
    """Performs the steps of a visitor."""
    page.locator("#items button").first.click()
    page.locator("#items button:enabled").nth(2).click()
    box = page.locator("#gift").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 30, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 200, box["y"] + 90, steps=15)
    page.mouse.up()
    page.locator("#nav-cart").click()
    page.locator("#name").press_sequentially("Ada", delay=60)
    page.locator("#card").press_sequentially("4111", delay=60)
    page.locator("#checkout").click()
    page.get_by_text("Something went wrong").wait_for()
    page.locator("#coupon").click(click_count=RAGE_CLICKS, delay=20)


def main() -> int:
    parser = argparse.ArgumentParser(description="Pictures of `replays-ingest try`.")
    parser.add_argument("directory", type=Path)
    directory: Path = parser.parse_args().directory
    began = time.monotonic()

    def log_step(what: str) -> None:
        print(f"{time.monotonic() - began:5.1f} s  {what}", flush=True)

    with run_try_command() as state, sync_playwright() as playwright:
        log_step(f"everything is up (by the command's own clock after {state['seconds']} s)")
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE)
        page.goto(state["link"])
        page.locator("#items button").first.wait_for()
        log_step("the shop is open")
        use_the_shop(page)
        # Hiding the caret would change the page, and the SDK would treat that change as a reaction to the clicks.
        page.screenshot(path=directory / "try-shop.png", caret="initial")
        log_step("the shop was used; Watch yourself is pressed")
        page.locator("#watch").click()
        page.wait_for_url("**/watch/*")
        log_step("the SDK has classified the last clicks and sent the recording")
        page.screenshot(path=directory / "try-waiting.png")
        page.wait_for_url(re.compile(rf"^{re.escape(state['replays'])}/replay/"))
        log_step("every sink has every segment")
        page.locator(".replayer-wrapper iframe").wait_for()
        page.locator("#marks [data-kind=rage_click]").click()
        page.locator("#marks [data-kind=rage_click].past").wait_for()
        log_step("the recording is shown, at the rage click")
        page.screenshot(path=directory / "try-replay.png")
        counted = page.locator("#kinds button").all_inner_texts()
        print("on the timeline:", ", ".join(counted))
        browser.close()
    log_step("everything is stopped and removed")
    print("\n".join(line for line in state["said"].splitlines() if line.startswith("replay ")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
