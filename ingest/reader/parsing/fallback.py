"""The fallback parser: parses large or slow messages one at a time in a child process with limits, while the
loop continues.

Each result is an event in the inbox of the loop. A message that crashes the child process or exceeds a limit
becomes a reject whose error text describes the crash or names the limit. See
docs/decisions/035-fallback-parser.md.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import asdict

import structlog

from ingest.core import events as on
from ingest.core.model import Message, Outcome, Reject
from ingest.core.parse import ParseRules
from ingest.core.parse.envelope import project_of
from ingest.reader.parsing.deadlines import Deadlines
from ingest.reader.parsing.inline import Child, ChildFailed
from ingest.reader.parsing.link import Hello
from tasks.units import MiB

log = structlog.get_logger(__name__)

# Memory that the child may use in addition to its memory after startup. Parsing a message needs at most 64 MiB
# plus 2.5 times the message's decompressed size (docs/cost.md); the message itself and its result need further
# memory.
MEMORY_BYTES_BASE, MEMORY_RATIO = 128 * MiB, 3
ATTEMPTS_MAX = 2
CLOSE_SECONDS_MAX = 2.0


class FallbackParser:
    """One child process that parses, and one thread that communicates with it. Both are started when the first
    message arrives.

    `answer` is called on this thread. At most one message per partition is queued, because the partition waits for
    it.
    """

    def __init__(
        self,
        rules: ParseRules,
        deadlines: Deadlines,
        answer: Callable[[on.MessageParsed], None],
        *,
        memory_bytes_max: int | None = None,
    ) -> None:
        if memory_bytes_max is None:
            memory_bytes_max = MEMORY_BYTES_BASE + MEMORY_RATIO * rules.inflated_bytes_max
        self._hello = Hello(asdict(rules), memory_bytes_max, cpu_seconds_max=deadlines.cpu_seconds)
        self._deadlines = deadlines
        self._answer = answer
        self._messages: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._child: Child | None = None
        self._closing = threading.Event()

    def submit(self, message: Message) -> None:
        """Queues a message, without blocking. MessageParsed follows, unless the parser is closed first."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="fallback-parser", daemon=True)
            self._thread.start()
        self._messages.put(message)

    @property
    def process_id(self) -> int | None:
        """Process id of the current child."""
        return self._child.process_id if self._child is not None else None

    def close(self) -> None:
        """Stops the child process and the thread. Waiting messages get no result."""
        self._closing.set()
        self._messages.put(None)
        if self._child is not None:
            self._child.kill()
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS_MAX)

    # The thread

    def _run(self) -> None:
        try:
            while (message := self._messages.get()) is not None and not self._closing.is_set():
                outcome = self._guaranteed_outcome(message)
                if self._closing.is_set():
                    break
                self._answer(on.MessageParsed(message.source, message.epoch, message.offset, outcome))
        finally:
            if self._child is not None:
                self._child.close()

    def _guaranteed_outcome(self, message: Message) -> Outcome:
        """Like `_outcome`, but never raises, because an exception would make the partition wait indefinitely."""
        try:
            return self._outcome(message)
        except Exception as error:
            log.exception("fallback_parser_broken", source=str(message.source), offset=message.offset)
            return Reject.of(
                message, "parser_failed", f"{type(error).__name__}: {error}", project_of(message.value)
            )

    def _outcome(self, message: Message) -> Outcome:
        """Parses one message. Retries once unless a limit was exceeded, because other failures may not be caused
        by the message."""
        error = ""
        for _ in range(ATTEMPTS_MAX):
            try:
                if self._child is None:
                    self._child = Child(self._hello, self._deadlines.answer_seconds)
                self._child.send([message])
                (outcome,) = self._child.answers()
                assert outcome is not None
                return outcome
            except (ChildFailed, OSError) as failure:
                error = str(failure)
                if self._closing.is_set():
                    break
                log.error("fallback_parser_failed", source=str(message.source), offset=message.offset, error=error)
                if isinstance(failure, ChildFailed) and failure.limit:
                    break
        text = f"the message could not be parsed within the limits of its process: {error}"
        return Reject.of(message, "parser_failed", text, project_of(message.value))
