"""Tests browser request headers: ranges of a video, and the user's identity."""

from __future__ import annotations

import base64

import pytest

from ingest.web.api import byte_range
from tasks.sign_in import credentials


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("bytes=0-3", (0, 4)),
        ("bytes=4-", (4, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-30", (0, 10)),
        ("bytes=5-99", (5, 10)),
        ("", None),
        ("bytes=", None),
        ("bytes=-", None),
        ("bytes=10-", None),
        ("bytes=4-2", None),
        ("bytes=0-1,3-4", None),
        ("items=0-3", None),
        ("bytes=a-b", None),
    ],
)
def test_one_range_of_a_video_is_half_open(header: str, found: tuple[int, int] | None) -> None:
    """A single byte range of a video is parsed as a half-open range.

    For an invalid range, the whole video is returned, which HTTP always allows.
    """
    assert byte_range(header, 10) == found


def test_an_empty_video_has_no_ranges() -> None:
    assert byte_range("bytes=0-", 0) is None


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("Basic " + base64.b64encode(b"ann:secret").decode(), "ann:secret"),
        ("basic " + base64.b64encode(b"ann:secret").decode(), "ann:secret"),
        ("Basic !!!", ""),
        ("Basic " + base64.b64encode(b"\xff:").decode(), ""),
        ("Bearer x", ""),
        ("", ""),
    ],
)
def test_only_basic_credentials_are_read(header: str, found: str) -> None:
    assert credentials(header) == found
