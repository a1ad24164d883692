"""Messages such as Celery sends, and filling a queue with them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from tests.benchmarks.brokers import BROKERS
from tests.benchmarks.spaces import Space

__all__ = ("KILOBYTE", "TWENTY", "Sender", "fill")

KILOBYTE = 1_000
TWENTY = 20_000
#: The largest number of messages in one transaction of a batch.
BATCH = 64
#: Some brokers look through their whole backlog for each message: a long one says nothing else.
_SLOW_BACKLOG = 2_000
NOOP = "tests.benchmarks.noop"


class Sender:
    """Publishes to one queue as Celery's producer does: protocol 2, JSON, persistent.

    Arguments:
        space: where.
        connection: an open connection; its producer is made anew.
        task: the task's name, in the headers.
        size: characters of padding in the body.
    """

    def __init__(
        self, space: Space, connection: Any, queue: str = "work", task: str = NOOP, size: int = 0
    ) -> None:
        self.queue = space.queue(queue)
        self.producer = connection.Producer()
        self.queue(self.producer.channel).declare()
        self._task = task
        self._reply_to = str(uuid.uuid4())  # without one, rpc:// keeps no result
        arguments = ["x" * size] if size else []
        self._body = [arguments, {}, dict.fromkeys(("callbacks", "errbacks", "chain", "chord"))]

    def send(self, body: Any = None, priority: int | None = None, eta: str | None = None) -> None:
        """Publish one message, with ids of its own."""
        identity = str(uuid.uuid4())
        headers: dict[str, Any] = {
            "lang": "py",
            "task": self._task,
            "id": identity,
            "shadow": None,
            "eta": eta,
            "expires": None,
            "group": None,
            "group_index": None,
            "retries": 0,
            "timelimit": [None, None],
            "root_id": identity,
            "parent_id": None,
            "argsrepr": "()",
            "kwargsrepr": "{}",
            "origin": "gen1@benchmark",
            "ignore_result": self._task == NOOP,  # a worker heeds this, not the task's own option
            "replaced_task_nesting": 0,
            "stamped_headers": None,
            "stamps": {},
        }
        self.producer.publish(
            self._body if body is None else body,
            routing_key=self.queue.name,
            exchange="",
            serializer="json",
            headers=headers,
            delivery_mode=2,
            priority=0 if priority is None else priority,
            correlation_id=identity,
            reply_to=self._reply_to,
        )

    def count_until(self, count: int, seconds: float) -> Iterator[int]:
        """Numbers up to ``count``, ending early when the time is up."""
        end = time.monotonic() + seconds
        for number in range(count):
            yield number
            if time.monotonic() > end:
                return

    @property
    def batches(self) -> bool:
        """Whether the broker takes several messages at once."""
        return bool(getattr(self.producer, "supports_batch_publish", False))


def fill(
    space: Space,
    count: int,
    seconds: float,
    *,
    queue: str = "work",
    task: str = NOOP,
    priority: int | None = None,
    connection: Any = None,
) -> int:
    """Put a backlog into a queue by the quickest way the broker has; return how large it is."""
    with ExitStack() as stack:
        opened = connection or stack.enter_context(space.connection())
        sender = Sender(space, opened, queue, task)
        if sender.batches:
            stack.enter_context(sender.producer.batch(max_size=BATCH))
        sent = 0
        if BROKERS[space.broker].slow:
            count = min(count, _SLOW_BACKLOG)
        for _ in sender.count_until(count, seconds):
            sender.send(priority=priority)
            sent += 1
    return sent
