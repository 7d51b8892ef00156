"""The explorer's Redis behaves like a real Redis for every command that the real code uses."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from redis import Redis

from tools.explore.hashes import BatchHash, Effect, perform
from tools.explore.programs import Chord, Program, Programs, tasks_of


def execute(client: Any, key: str, effect: Effect) -> Any:
    """Runs the command on a real server and returns the response."""
    if effect.name == "hmget":
        return tuple(client.hmget(key, effect.arguments[0]))
    if effect.name == "script":
        text, keys, arguments = effect.arguments
        answer = client.register_script(text)(keys=[key, f"{key}:breaker"][:keys], args=arguments)
        return frozen(answer)
    for name, *arguments in effect.arguments:
        match name:
            case "hset":
                client.hset(key, mapping=dict(arguments[0]))
            case "hdel":
                client.hdel(key, *arguments[0])
            case "expire":
                client.expire(key, 600)
    return ()


def frozen(answer: Any) -> Any:
    """Returns the response with tuples instead of lists."""
    return tuple(map(frozen, answer)) if isinstance(answer, list) else answer


def random_program(random: Random) -> Program:
    """Returns a random program, which may be invalid."""
    chord = Chord(random.randrange(2), random.random() < 0.5, random.randrange(1, 3))
    kind = random.choice(("run", "run", "run", "dispatch", "dispatch", "report", "discard"))
    task = random.choice(tasks_of(chord.rows)) if kind == "run" else ""
    return Program(kind, chord, task, random.randrange(2) if task else 0)


def fields(client: Any, key: str) -> frozenset[tuple[str, bytes]]:
    return frozenset((name.decode(), value) for name, value in client.hgetall(key).items())


@pytest.mark.parametrize("seed", range(10))
def test_results_and_hash_equal_those_of_redis(redis_url: str, seed: int) -> None:
    """For interleaved programs, the results and the hash after each round trip equal those of Redis."""
    random, client, programs = Random(seed), Redis.from_url(redis_url), Programs()
    key, staged = f"explored-{seed}", BatchHash()
    running: list[tuple[Program, tuple[Any, ...]]] = []
    client.delete(key)

    for _ in range(300):
        if len(running) < 3:
            running.append((random_program(random), ()))
        program, answers = running.pop(random.randrange(len(running)))
        effect = programs.next(program, answers).effect
        if effect is None:
            continue
        if effect.name == "write":
            running.append((program, (*answers, random.choice(("", "503")))))
            continue
        performed = perform(effect, staged)
        answered = execute(client, key, effect)
        staged = performed.staged

        assert answered == performed.answer, (program, effect)
        assert fields(client, key) == staged.fields, (program, effect)
        assert (client.ttl(key) > 0) == staged.expires, (program, effect)
        running.append((program, (*answers, performed.answer)))
        if random.random() < 0.02:
            client.delete(key)
            staged = BatchHash()

    assert len(programs) > 20
