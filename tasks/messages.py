"""Trims task messages.

Every flush task message contains its chord's callback, which contains the errback. With the empty fields that
Celery adds, the message would be twice as long, and Redis stores the message twice while the task runs.
"""

from __future__ import annotations

from typing import Any

from celery.signals import before_task_publish

from tasks.wire import batch_id_of

EMPTY: tuple[Any, ...] = (None, "", {}, [], "()", "{}", [None, None])
# The batch's manifest names the sender, there are no replies, and `correlation_id` and `root_id` repeat the id.
HEADERS_DROPPED = ("lang", "origin", "replaced_task_nesting", "root_id")
DROPPED_PROPERTIES = ("reply_to", "correlation_id")
# A callback needs no reply address and is not a member of its chord.
DROPPED_BODY_OPTIONS = ("reply_to", "ignore_result", "group_id")


@before_task_publish.connect(weak=False)
def trim(body: Any = None, headers: Any = None, properties: Any = None, **_: Any) -> None:
    """Removes empty fields, which workers treat as missing.

    Changes the arguments of the outgoing message in place.
    """
    for name in [name for name, value in headers.items() if value in EMPTY or name in HEADERS_DROPPED]:
        del headers[name]
    for name in DROPPED_PROPERTIES:
        properties.pop(name, None)
    if not isinstance(body, tuple):
        return
    kwargs, embedded = body[1], body[2]
    if "task" in kwargs and "batch" in kwargs:
        # Flower shows this text. Digest and deadline are omitted for readability.
        headers["kwargsrepr"] = repr({"batch": batch_id_of(kwargs["batch"]), "task": kwargs["task"]})
    if embedded.get("chord"):
        embedded["chord"] = _trimmed(embedded["chord"])
    for name in [name for name, value in embedded.items() if value is None]:
        del embedded[name]


def _trimmed(signature: Any) -> dict[str, Any]:
    """Returns a signature without empty or unused fields."""
    trimmed = {name: signature[name] for name in ("task", "args", "kwargs")}
    if signature.get("immutable"):
        trimmed["immutable"] = True
    options = {name: value for name, value in signature["options"].items() if name not in DROPPED_BODY_OPTIONS}
    if "link_error" in options:
        options["link_error"] = [_trimmed(each) for each in options["link_error"]]
    return {**trimmed, "options": options}
