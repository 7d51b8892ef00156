"""Compares stored facts with the actions that it performs in the shop, for several versions of the browser SDK.

    python -m tools.sdks 7 8 9 10 11        (make live-sdks)

Each argument is a major version, whose newest release is built, or an exact version. The versions are built in a
temporary directory. `replays-ingest try` serves the shop. For each version, headless Chromium opens the shop,
loads the built script in place of the shipped one, and performs the actions. Prints the actions and the stored
facts; lines that are identical for several versions are printed once.

The exit code is 1 if anything differs without a stated reason, and 2 if a version cannot be built.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, BrowserContext, sync_playwright

from ingest.local.launch import settings_of
from tools.pictures.running import CHROMIUM, run_try_command
from tools.sdks.build import BuildError, Sdk, built
from tools.sdks.comparing import Comparison, compare_timeline, compared, facts_of, sdk_version_of
from tools.sdks.driving import VIEWPORT_HEIGHT, VIEWPORT_WIDTH, PerformedActions, click_dead, use_the_shop, watched

SHIPPED = "**/static/vendor/sentry.js"
HEADER = ("SDK", "fact", "page did", "facts stored", "equal")


@dataclass(frozen=True, slots=True)
class Line:
    """One comparison with one version of the SDK."""

    version: str
    compared: Comparison


def compare_with_shop(context: BrowserContext, trial: Any, sdk: Sdk) -> list[Line]:
    """Uses the shop with this SDK, in a new tab, and compares the performed actions with the stored facts."""
    page = context.new_page()
    page.route(SHIPPED, lambda route: route.fulfill(path=sdk.script, content_type="text/javascript"))
    done = PerformedActions()

    def steps(*arguments: Any) -> None:
        use_the_shop(*arguments)
        click_dead(*arguments)

    replay_id = watched(page, f"{trial['shop']}/", trial["replays"], done, steps)
    shown = compare_timeline(page, done)
    page.close()
    settings = settings_of(trial["settings"])
    version = Comparison("SDK version", sdk.version, sdk_version_of(settings, replay_id))
    found = (version, *compared(facts_of(settings, replay_id), done), shown)
    return [Line(sdk.version, comparison) for comparison in found]


def signed_in(browser: Browser, trial: Any) -> BrowserContext:
    """Opens a browser context that is signed in through the printed link."""
    context = browser.new_context(viewport={"width": VIEWPORT_WIDTH, "height": VIEWPORT_HEIGHT})
    context.request.get(trial["link"])
    return context


def table(lines: Sequence[Line]) -> str:
    """Returns the lines as a Markdown table, grouped by kind of fact. Versions with identical comparisons share
    one row.
    """
    versions: dict[Comparison, list[str]] = {}
    for line in lines:
        versions.setdefault(line.compared, []).append(line.version)
    kinds = list(dict.fromkeys(line.compared.kind for line in lines))
    version_count = len({line.version for line in lines})
    rows = [HEADER, ("---",) * len(HEADER)]
    for found in sorted(versions, key=lambda comparison: kinds.index(comparison.kind)):
        verdict = "yes" if found.is_equal else f"no: {found.reason}" if found.reason else "NO"
        names = "all" if len(versions[found]) == version_count > 1 else ", ".join(versions[found])
        rows.append((names, found.kind, found.did, found.stored, verdict))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.sdks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("versions", nargs="+", help="Major or exact versions of @sentry/browser.")
    versions: list[str] = parser.parse_args(arguments).versions
    for version in versions:
        if not re.fullmatch(r"\d+(\.\d+\.\d+)?", version):
            parser.error(f"{version} is neither a major nor an exact version, for example 7 or 7.120.4")
    if not CHROMIUM:
        parser.error("no chromium; Debian's package is called chromium")
    lines: list[Line] = []
    with tempfile.TemporaryDirectory(prefix="replays-sdks-") as folder:
        try:
            sdks = [built(version, Path(folder) / version) for version in dict.fromkeys(versions)]
        except BuildError as error:
            parser.error(str(error))
        with run_try_command() as trial, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            context = signed_in(browser, trial)
            for sdk in sdks:
                lines += compare_with_shop(context, trial, sdk)
                print(f"{sdk.version} recorded", file=sys.stderr, flush=True)
            browser.close()
    print(table(lines))
    return 0 if all(line.compared.is_accepted for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
