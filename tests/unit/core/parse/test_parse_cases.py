"""Single segments of real SDKs that were once parsed incorrectly, from tests/recordings/cases."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from ingest.core.model import Segment
from ingest.web.timeline import read
from tests.kit.parsing import clicks, facts, parsed, session
from tests.kit.paths import ROOT
from tests.kit.recordings import inflated

CASES = ROOT / "tests" / "recordings" / "cases"


def value(name: str) -> bytes:
    return (CASES / f"{name}.msgpack").read_bytes()


def segment(name: str) -> Segment:
    received = msgspec.msgpack.decode(value(name))["received"]
    return parsed(value(name), timestamp_ms=received * 1000)


def vitals(name: str) -> dict[str, Any]:
    """Maps the name of each web vital to its value in milliseconds."""
    return {kind: fields["value"] for kind, fields in facts(segment(name)) if kind.startswith("web-vital.")}


@pytest.mark.parametrize(("name", "warnings"), [("half-surrogate", ()), ("dom-500-deep", ("event_too_deep",))])
def test_the_viewer_can_play_what_the_reader_accepts(name: str, warnings: tuple[str, ...]):
    """A segment that the reader accepts is stored, and the player can start at its snapshot."""
    assert segment(name).warnings == warnings
    body = bytes(msgspec.msgpack.decode(value(name))["payload"]).partition(b"\n")[2]

    timeline = read([(0, inflated(body))])

    assert timeline.unreadable == {}
    assert len(timeline.snapshots) == 1


def test_vitals_of_sdk_11_have_their_values():
    """The vitals of SDK 11 are read; the first contentful paint is measured from the start of the page load."""
    found = vitals("vitals-sdk11")

    assert found["web-vital.largest-contentful-paint"] == 764
    assert found["web-vital.first-contentful-paint"] == pytest.approx(764.0, abs=0.1)


def test_vitals_of_sdk_7_have_their_values():
    """The largest contentful paint is read, although its span has another op in SDK 7."""
    found = vitals("vitals-sdk7")

    assert found["web-vital.largest-contentful-paint"] == 2324
    assert found["web-vital.first-contentful-paint"] == pytest.approx(2324.0, abs=0.1)


def test_a_click_row_has_its_environment():
    """The environment of the session is in each click row, so that clicks can be queried by environment."""
    (click,) = clicks(segment("click-environment"))

    assert click["environment"] == "dev"


def test_the_tag_of_the_transaction_is_the_title():
    """The title is the transaction tag; the segment names that newer SDKs send are kept."""
    row = session(segment("title-segment-names"))

    assert row["title"] == "/a/b"
    assert row["segment_names"] == ["Pageload"]
    assert row["tags.key"] == ["transaction", "x"]
