"""One client per process, created on first use, because clients must not cross a fork."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class PerProcessValue(Generic[T]):
    """Calls `make` once in each process that needs a client.

    A client inherited from the parent process is neither used nor closed, because its sockets belong to the
    parent.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._value: T | None = None
        self._pid = 0
        self._inherited: list[T] = []

    def get(self) -> T:
        """Returns this process's client. Exceptions from `make` propagate, and the next call to `get` calls `make`
        again.
        """
        value = self._value
        if value is not None and self._pid == os.getpid():
            return value
        with self._lock:
            if self._value is not None and self._pid != os.getpid():
                self._inherited.append(self._value)
                self._value = None
            if self._value is None:
                self._value = self._make()
                self._pid = os.getpid()
            return self._value

    def take(self) -> T | None:
        """Removes and returns this process's client, so that the caller can close it; None if there is none. The
        next `get` creates a new client."""
        with self._lock:
            if self._pid != os.getpid():
                return None
            value, self._value = self._value, None
            return value
