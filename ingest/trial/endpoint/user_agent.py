"""Extracts browser, operating system and device from a User-Agent header.

Covers the common browsers. The results have the form in which Relay writes them into a replay event's contexts.
Relay's rules cover far more products; anything not covered here is left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

USER_AGENT_CHARACTERS_MAX = 1000
_VERSION = r"/(\d{1,5}(?:\.\d{1,6}){0,3})"


@dataclass(frozen=True, slots=True)
class Product:
    """A name and a version; "" if unknown."""

    name: str
    version: str = ""


# The order matters, because Chromium's derivatives also name Chrome, and Chrome also names Safari.
_BROWSERS = tuple(
    (name, re.compile(pattern))
    for name, pattern in (
        ("Edge", r"Edg(?:e|A|iOS)?" + _VERSION),
        ("Opera", r"OPR" + _VERSION),
        ("Samsung Internet", r"SamsungBrowser" + _VERSION),
        ("Firefox", r"(?:Firefox|FxiOS)" + _VERSION),
        ("HeadlessChrome", r"HeadlessChrome" + _VERSION),
        ("Chrome Mobile iOS", r"CriOS" + _VERSION),
        ("Chrome Mobile", r"Chrome" + _VERSION + r" Mobile"),
        ("Chrome", r"(?:Chrome|Chromium)" + _VERSION),
        ("Mobile Safari", r"Version" + _VERSION + r" Mobile/\w{1,12} Safari"),
        ("Safari", r"Version" + _VERSION + r" Safari"),
    )
)
_SYSTEMS = (
    ("Windows", re.compile(r"Windows NT (\d{1,3}\.\d{1,3})")),
    ("iOS", re.compile(r"(?:iPhone|CPU) OS (\d{1,3}(?:_\d{1,3}){0,2})")),
    ("Android", re.compile(r"Android (\d{1,3}(?:\.\d{1,3}){0,2})")),
    ("Mac OS X", re.compile(r"Mac OS X (\d{1,3}(?:[._]\d{1,3}){0,2})")),
    ("Chrome OS", re.compile(r"CrOS \w{1,16} (\d{1,6}(?:\.\d{1,6}){0,2})")),
    ("Linux", re.compile(r"Linux()")),
)
_WINDOWS = {"10.0": "10", "6.3": "8.1", "6.2": "8", "6.1": "7"}
_DEVICES = (("iPhone", "iPhone"), ("iPad", "iPad"), ("Macintosh", "Mac"))


def browser_of(user_agent: str) -> Product | None:
    """Returns the browser, with up to three parts of its version."""
    for name, pattern in _BROWSERS:
        if found := pattern.search(user_agent, 0, USER_AGENT_CHARACTERS_MAX):
            return Product(name, ".".join(found[1].split(".")[:3]))
    return None


def system_of(user_agent: str) -> Product | None:
    """Returns the operating system. Browsers report Windows 11 as version 10 and every recent macOS as 10.15.7."""
    for name, pattern in _SYSTEMS:
        if found := pattern.search(user_agent, 0, USER_AGENT_CHARACTERS_MAX):
            version = found[1].replace("_", ".")
            return Product(name, _WINDOWS.get(version, version) if name == "Windows" else version)
    return None


def device_of(user_agent: str) -> str:
    """Returns the device's family; "Other" if unknown."""
    return next((family for word, family in _DEVICES if word in user_agent[:USER_AGENT_CHARACTERS_MAX]), "Other")
