"""A model of Redis with one hash and one stream, without side effects.

The model supports the commands that `tasks.staging` and `tasks.coordination` use. The real code uses a `Client`.
Each request is an `Effect`, which `perform` applies to a value of type `BatchHash`. Scripts are translated by hand
and identified by their whole text, so that a changed script stops the explorer until it is translated again. A
test compares this module with a real server.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from redis.exceptions import NoPermissionError

from tasks import breaker

# The response of a closed circuit breaker to a permit request.
CLOSED = (b"closed", b"0", b"")


class Effect(NamedTuple):
    """One round trip: the request, and its arguments as plain data."""

    name: str
    arguments: tuple[Any, ...]


class BatchHash(NamedTuple):
    """The Redis hash of one batch. `exists`: it has fields; `expires`: it has an expiry."""

    fields: frozenset[tuple[str, bytes]] = frozenset()
    expires: bool = False

    @property
    def exists(self) -> bool:
        return bool(self.fields)

    def value(self, name: str) -> bytes | None:
        """Returns the value of a field, or None if the field does not exist."""
        return next((value for field, value in self.fields if field == name), None)

    def put(self, values: Mapping[str, bytes]) -> BatchHash:
        """Returns a copy with the given fields set."""
        kept = {(name, value) for name, value in self.fields if name not in values}
        return self._replace(fields=frozenset(kept | set(values.items())))

    def without(self, names: Sequence[str]) -> BatchHash:
        """Returns a copy without the given fields. A hash without fields does not exist and has no expiry."""
        kept = frozenset((name, value) for name, value in self.fields if name not in names)
        return BatchHash(kept, self.expires and bool(kept))

    def expiring(self) -> BatchHash:
        """Returns a copy with an expiry, if the hash exists."""
        return self._replace(expires=self.exists)


class ResponsePending(BaseException):
    """The code made a request for which no response is recorded yet."""

    def __init__(self, effect: Effect) -> None:
        super().__init__(effect)
        self.effect = effect


class Client:
    """Stands in for a redis-py client. Returns the recorded responses in order, then raises ResponsePending."""

    def __init__(self, answers: Sequence[Any]) -> None:
        self._answers = iter(answers)

    def ask(self, name: str, *arguments: Any) -> Any:
        """Returns the response to the next effect. Raises ResponsePending."""
        for answer in self._answers:
            return answer
        raise ResponsePending(Effect(name, arguments))

    def hmget(self, key: str, names: Sequence[str]) -> list[bytes | None]:
        """Returns fields of the hash, with None for missing fields."""
        return list(self.ask("hmget", tuple(names)))

    def hget(self, key: str, name: str) -> bytes | None:
        """Returns the value of one field."""
        found: bytes | None = self.ask("hmget", (name,))[0]
        return found

    def time(self) -> tuple[int, int]:
        """Always returns the same time, because task deadlines never expire in the model."""
        return 0, 0

    def info(self, section: str) -> dict[str, int]:
        """Responds like a server whose ACL denies access to the server's memory figures."""
        raise NoPermissionError

    def register_script(self, text: str) -> Callable[..., Any]:
        """Returns a callable, as redis-py's `register_script` does. The scripts of the circuit breakers always
        report a closed breaker.
        """
        if text in (breaker._REQUEST_SCRIPT, breaker._REPORT_SCRIPT):
            return lambda keys, args: list(CLOSED) if text == breaker._REQUEST_SCRIPT else b"closed"
        return lambda keys, args: self.ask("script", text, len(keys), tuple(map(_text, args)))

    def pipeline(self, transaction: bool) -> Pipeline:
        """Returns a pipeline, which runs as one step even without a transaction, because no other client can
        affect the result between its commands.
        """
        return Pipeline(self)


class Pipeline:
    """A pipeline of commands that are sent together."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._commands: list[tuple[Any, ...]] = []

    def hset(self, key: str, mapping: Mapping[str, Any]) -> None:
        """Sets fields."""
        self._commands.append(("hset", tuple((name, _bytes(value)) for name, value in mapping.items())))

    def hdel(self, key: str, *names: str) -> None:
        """Removes fields."""
        self._commands.append(("hdel", names))

    def expire(self, key: str, seconds: int) -> None:
        """Sets the expiry of the hash or the stream."""
        self._commands.append(("expire",))

    def xadd(self, stream: str, entry: Mapping[str, bytes], maxlen: int, approximate: bool) -> None:
        """Adds one entry to the stream of a reader."""
        self._commands.append(("xadd", entry["c"]))

    def execute(self) -> Any:
        """Runs all commands in one round trip."""
        return self._client.ask("pipeline", *self._commands)


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def digest(text: str) -> str:
    """Returns the id of a script."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _text(value: Any) -> Any:
    return value if isinstance(value, (str, bytes)) else str(value)


class PerformedEffect(NamedTuple):
    """The result of an effect: the hash after it, the response, and the completion added to a stream, if any."""

    staged: BatchHash
    answer: Any
    completion: bytes = b""


def perform(effect: Effect, staged: BatchHash) -> PerformedEffect:
    """Applies an effect as the server does. Raises KeyError for a script that was not translated."""
    match effect.name:
        case "hmget":
            return PerformedEffect(staged, tuple(staged.value(name) for name in effect.arguments[0]))
        case "script":
            text, keys, arguments = effect.arguments
            return PerformedEffect(*SCRIPTS[digest(text)](staged, keys, arguments))
        case "pipeline":
            return _pipeline(effect.arguments, staged)
    raise AssertionError(effect)


def _pipeline(commands: Sequence[tuple[Any, ...]], staged: BatchHash) -> PerformedEffect:
    completion = b""
    for name, *arguments in commands:
        match name:
            case "hset":
                staged = staged.put(dict(arguments[0]))
            case "hdel":
                staged = staged.without(arguments[0])
            case "expire":
                staged = staged if completion else staged.expiring()
            case "xadd":
                completion = arguments[0]
    return PerformedEffect(staged, (), completion)


def _begin(staged: BatchHash, keys: int, arguments: Sequence[Any]) -> tuple[BatchHash, Any]:
    done, starts, left, task, manifest, seal, left_seal, forged, inline_max, *_ = arguments
    mark, progress, data = staged.value(done), staged.value(left), staged.value(manifest)
    rest = progress, data, staged.value(seal), staged.value(left_seal), mark
    if mark is not None and forged == "0":
        return staged, (1, 0, *rest, None, None)
    payload = staged.value(task)
    if data is None or payload is None:
        return staged, (2,)
    count = int(staged.value(starts) or b"0") + 1
    permit = CLOSED if keys == 2 else None
    small = payload if len(payload) <= int(inline_max) else None
    return staged.put({starts: str(count).encode()}), (0, count, *rest, permit, small)


def _mark(staged: BatchHash, keys: int, arguments: Sequence[Any]) -> tuple[BatchHash, Any]:
    _, done, mark, *gone = arguments
    return staged.put({done: _bytes(mark)}).without(gone[:7]).expiring(), b"closed" if keys == 2 else b""


def _put_off(staged: BatchHash, keys: int, arguments: Sequence[Any]) -> tuple[BatchHash, Any]:
    manifest, starts, *fields = arguments
    if staged.value(manifest) is None:
        return staged, 0
    pairs = zip(fields[::2], fields[1::2], strict=True)
    return staged.put({name: _bytes(value) for name, value in pairs}).without([starts]), 1


Translation = Callable[[BatchHash, int, Sequence[Any]], tuple[BatchHash, Any]]
# The hand-translated scripts, by `digest` of their text.
SCRIPTS: dict[str, Translation] = {
    "e4d6004a0f659d9c": _begin,
    "5a59865fd1152215": _mark,
    "221faba68bd6e4c2": _put_off,
}
