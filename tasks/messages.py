"""What a task's message looks like on the broker: as small as a worker can read it.

Every flush task carries its chord's body, and that the errback. With all the empty fields of the three of them a
message would be twice as long, and Redis holds it twice while the task runs.
"""

from __future__ import annotations

from typing import Any

from celery.signals import before_task_publish

from tasks.wire import batch_id_of

EMPTY: tuple[Any, ...] = (None, "", {}, [], "()", "{}", [None, None])
# Who sent it is in the batch's manifest; nobody replies; `correlation_id` and `root_id` repeat the id.
HEADERS_DROPPED = ("lang", "origin", "replaced_task_nesting", "root_id")
PROPERTIES_DROPPED = ("reply_to", "correlation_id")
# A body needs no reply address, and it is no member of the chord that it follows.
BODY_OPTIONS_DROPPED = ("reply_to", "ignore_result", "group_id")


@before_task_publish.connect(weak=False)
def trim(body: Any = None, headers: Any = None, properties: Any = None, **_: Any) -> None:
    """Leaves out what says nothing: a worker takes a missing field for an empty one.

    The arguments are those of the message that is about to be sent, and are changed in place.
    """
    for name in [name for name, value in headers.items() if value in EMPTY or name in HEADERS_DROPPED]:
        del headers[name]
    for name in PROPERTIES_DROPPED:
        properties.pop(name, None)
    if not isinstance(body, tuple):
        return
    kwargs, embedded = body[1], body[2]
    if "task" in kwargs and "batch" in kwargs:
        # What Flower shows of a flush task; the digest and the deadline would only make it hard to read.
        headers["kwargsrepr"] = repr({"batch": batch_id_of(kwargs["batch"]), "task": kwargs["task"]})
    if embedded.get("chord"):
        embedded["chord"] = _trimmed(embedded["chord"])
    for name in [name for name, value in embedded.items() if value is None]:
        del embedded[name]


def _trimmed(signature: Any) -> dict[str, Any]:
    """A signature without what is empty or of no use to the worker that sends it."""
    kept = {name: signature[name] for name in ("task", "args", "kwargs")}
    if signature.get("immutable"):
        kept["immutable"] = True
    options = {name: value for name, value in signature["options"].items() if name not in BODY_OPTIONS_DROPPED}
    if "link_error" in options:
        options["link_error"] = [_trimmed(each) for each in options["link_error"]]
    return {**kept, "options": options}
