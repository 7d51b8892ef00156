"""Tests which of the errors that redis-py raises mean that the server is unavailable."""

from __future__ import annotations

import pytest
from redis._parsers.base import BaseParser
from redis.exceptions import RedisError

from tasks.connection import UNAVAILABLE_CODES, unavailable_code
from tests.kit.paths import ROOT

CODES = (
    "READONLY", "UNBLOCKED", "MASTERDOWN", "NOREPLICAS", "MISCONF", "LOADING", "BUSY", "CLUSTERDOWN", "FAILOVER",
    "REDIRECT",
)  # fmt: skip


def raised_error(answer: str) -> RedisError:
    """Returns the error that redis-py creates from a response, without the codes that redis-py removes from the
    text.
    """
    error = BaseParser.parse_error(answer)
    assert isinstance(error, RedisError)
    return error


@pytest.mark.parametrize("code", CODES)
def test_each_code_means_unavailable(code: str) -> None:
    """Each code means that Redis is unavailable, including codes that no server can be made to send in a test."""
    assert unavailable_code(raised_error(f"{code} this server cannot serve")) == code


@pytest.mark.parametrize("code", CODES)
def test_each_code_means_unavailable_inside_a_script(code: str) -> None:
    """Each error code that means that Redis is unavailable is also recognized if the error occurs inside a script;
    older servers put the code into the text of such an error.
    """
    assert (
        unavailable_code(raised_error(f"ERR Error running script (call to f_1): @user_script:1: -{code} no. "))
        == code
    )


@pytest.mark.parametrize("answer", ["OOM command not allowed", "ERR unknown command", "WRONGTYPE no", "NOAUTH no"])
def test_other_errors_are_not_unavailability(answer: str) -> None:
    """Errors caused by a full server, a bug in our code, or a missing password do not count as unavailability.

    A new connection would get the same response.
    """
    assert unavailable_code(raised_error(answer)) == ""


def test_the_page_lists_the_codes() -> None:
    """docs/redis.md lists every code that means that Redis is unavailable, so that operators can look it up."""
    page = (ROOT / "docs" / "redis.md").read_text()

    assert set(CODES) == UNAVAILABLE_CODES
    assert [code for code in CODES if f"`{code}`" not in page] == []
