"""The plain processes of the harness: ``python -m tests.acceptance.kill.roles ROLE``.

Producers note ``try`` before and ``sent`` after a publish; consumers ``begin``, then ``acked``,
``requeued`` or ``refused`` once the file has said so; who cancels, what came of it.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

from celery import chord
from kombu import Connection, Consumer, Exchange, Queue

from celery_integration import control
from kombu_sqlite import LeaseLost, QueueDatabase, SessionLost

from .ledger import Ledger

EXCHANGE = Exchange("plain", type="direct")
QUEUES = [Queue(f"plain-{n}", EXCHANGE, routing_key=str(n)) for n in range(2)]
#: Producers wait while more than this is queued: processes shall sleep and wake as well.
BACKLOG = 300
PREFETCH = 16

#: The state counts of the rows beside those that the triggers keep, of one moment.
COUNTS = """
SELECT t.status, count(*), (SELECT sum(tasks) FROM task_counts c WHERE c.status = t.status)
FROM task_queue t GROUP BY t.status"""


class Role:
    """One process: who it is, where it notes, and whether it was asked to end."""

    def __init__(self) -> None:
        self.name = os.environ["KILL_NAME"]
        self.url = os.environ["KILL_URL"]
        self.ledger = Ledger(os.environ["KILL_LEDGERS"], self.name)
        self.random = random.Random(f"{os.environ['KILL_SEED']}-{self.name}")  # noqa: S311 - chance, no secret
        self.ended = False
        self._count = 0
        signal.signal(signal.SIGTERM, self._end)

    def _end(self, *_: Any) -> None:
        self.ended = True

    def new_id(self) -> str:
        """Return an id that nobody else ever has."""
        self._count += 1
        return f"{self.name}-{self._count}"

    @contextmanager
    def publishing(self, identities: list[str]) -> Iterator[None]:
        """Note ids before their publish, and once it has returned."""
        for identity in identities:
            self.ledger.note("try", identity)
        yield
        for identity in identities:
            self.ledger.note("sent", identity)

    def pause(self, longest_s: float) -> None:
        """Sleep for a random time."""
        time.sleep(self.random.random() * longest_s)


def produce(role: Role) -> None:
    """Publish plain messages, singly and in batches."""
    with Connection(role.url) as connection:
        producer = connection.Producer(exchange=EXCHANGE, auto_declare=False)
        batch = getattr(producer, "batch", nullcontext)  # it came with Kombu 5.7
        bound = [queue(connection.default_channel) for queue in QUEUES]
        for queue in bound:
            queue.declare()

        def publish(identity: str) -> None:
            producer.publish(
                {"id": identity, "pad": "x" * role.random.choice([0, 10, 200, 4000])},
                routing_key=str(role.random.randrange(2)),
                priority=role.random.randrange(3),
            )

        while not role.ended:
            waiting = sum(queue.queue_declare(passive=True).message_count for queue in bound)
            if waiting > BACKLOG:
                role.pause(0.1)
                continue
            for _ in range(role.random.randrange(20)):
                identity = role.new_id()
                with role.publishing([identity]):
                    publish(identity)
            identities = [role.new_id() for _ in range(role.random.randrange(20))]
            with role.publishing(identities), batch():
                for identity in identities:
                    publish(identity)
            role.pause(0.05)


def call(role: Role) -> None:
    """Publish Celery tasks: plain and delayed ones, such that retry or are acked early, chords."""
    from . import app as tasks

    def one(make: Callable[[], Any], **options: Any) -> None:
        identity = role.new_id()
        with role.publishing([identity]):
            make().apply_async(task_id=identity, **options)

    def call_chord() -> None:
        header = [role.new_id() for _ in range(3)]
        body = role.new_id()
        with role.publishing([*header, body]):
            chord(tasks.work.si().set(task_id=identity) for identity in header)(
                tasks.collect.s().set(task_id=body)
            )

    while not role.ended:
        kind = role.random.random()
        if kind < 0.08:
            call_chord()
        elif kind < 0.2:
            one(lambda: tasks.flaky.s(role.random.randrange(2, 4)))
        elif kind < 0.3:
            one(lambda: tasks.delayed.s(), countdown=role.random.random())
        elif kind < 0.4:
            one(lambda: tasks.early.s(role.random.random() * 0.1))
        else:
            one(lambda: tasks.work.s(role.random.random() * 0.1))
        role.pause(0.12)
    tasks.app.close()


def consume(role: Role) -> None:
    """Consume plain messages, and connect again after a loss of the session."""

    def handle(body: Any, message: Any) -> None:
        identity, tag = body["id"], message.delivery_tag
        role.ledger.note("begin", identity, tag, 0)
        role.pause(0.005)
        try:
            if role.random.random() < 0.01:
                message.requeue()
                role.ledger.note("requeued", identity, tag)
            else:
                message.ack()
                role.ledger.note("acked", identity, tag)
        except LeaseLost:
            role.ledger.note("refused", identity, tag)

    while not role.ended:
        try:
            with (
                Connection(role.url + "&immediate_ack=1") as connection,
                Consumer(connection, QUEUES, callbacks=[handle], prefetch_count=PREFETCH),
            ):
                while not role.ended:
                    with suppress(TimeoutError):
                        connection.drain_events(timeout=0.5)
        except SessionLost:
            role.ledger.note("lost-session")


def read(role: Role) -> None:
    """Read statistics, and compare the counts with the rows."""
    with QueueDatabase(role.url) as database:
        while not role.ended:
            unequal = [row for row in database.execute(COUNTS) if row[1] != row[2]]
            stats = database.statistics()
            if unequal or min(stats.total_tasks, stats.queued_tasks, stats.processing_tasks) < 0:
                role.ledger.note("unequal", [tuple(row) for row in unequal], stats)
            database.worker_states()
            role.ledger.note("read", stats.total_tasks)
            role.pause(0.5)


def cancel(role: Role) -> None:
    """Cancel tasks that wait, for their time, a retry or a worker; note what came of it."""
    from . import app as tasks

    with QueueDatabase(role.url) as database:
        while not role.ended:
            kind = role.random.choice(["killed.delayed", "killed.flaky", "killed.early"])
            for row in database.list(status="queued", type=kind, limit=1):
                role.ledger.note("cancelling", row.task_id)
                outcome = control.cancel(tasks.app, row.id)
                role.ledger.note("cancelled", row.task_id, outcome.status)
            role.pause(0.3)


ROLES = {"produce": produce, "call": call, "consume": consume, "read": read, "cancel": cancel}


if __name__ == "__main__":
    ROLES[sys.argv[1]](Role())
