"""What a task's message looks like on the broker: as small as a worker can read it.

Every flush task carries its chord's body, and that the errback. With all the empty fields of the three of them a
message would be twice as long, and Redis holds it twice while the task runs.
"""

from __future__ import annotations

from typing import Any

from celery.signals import before_task_publish

EMPTY: tuple[Any, ...] = (None, "", {}, [], "()", "{}", [None, None])
# A body needs no reply address, and it is no member of the chord that it follows.
BODY_OPTIONS = ("reply_to", "ignore_result", "group_id")


@before_task_publish.connect(weak=False)
def trim(body: Any = None, headers: Any = None, properties: Any = None, **_: Any) -> None:
    """Leaves out what says nothing: a worker takes a missing field for an empty one.

    The arguments are those of the message that is about to be sent, and are changed in place.
    """
    for name in [name for name, value in headers.items() if value in EMPTY]:
        del headers[name]
    # Who sent it is in the batch's manifest; there are no replies; `correlation_id` and `root_id` repeat the id.
    for name in ("origin", "replaced_task_nesting", "root_id"):
        headers.pop(name, None)
    for name in ("reply_to", "correlation_id"):
        properties.pop(name, None)
    if isinstance(body, tuple):
        embedded = body[2]
        if embedded.get("chord"):
            options = {k: v for k, v in embedded["chord"]["options"].items() if k not in BODY_OPTIONS}
            embedded["chord"] = {**embedded["chord"], "options": options}
        for name in [name for name, value in embedded.items() if value is None]:
            del embedded[name]
