"""Exceptions that come from nowhere: a signal handler's, such as Celery's soft time limit's."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import apsw
import pytest
from kombu import Connection

import kombu_sqlite
from kombu_sqlite import QueueDatabase

PACKAGE = str(Path(kombu_sqlite.__file__).parent)


class Interrupted(BaseException):
    """What a signal handler raises."""


class Strike:
    """Raises at the n-th line or call inside the package, once ``handler`` was called there."""

    def __init__(self, at: int, handler: Callable[[], Any] | None = None) -> None:
        self.left = at
        self.handler = handler
        self.where = ""

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Any:
        """Trace the package's own frames."""
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event in ("call", "line"):
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                self.where = f"{frame.f_code.co_filename}:{frame.f_lineno} ({event})"
                if self.handler is not None:
                    self.handler()
                raise Interrupted
        return self


@contextlib.contextmanager
def tracing(trace: Any) -> Iterator[None]:
    """Trace; coverage's own tracer comes back afterwards."""
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def strikes(
    action: Callable[[], Any], handler: Callable[[], Any] | None = None
) -> Iterator[tuple[str, bool]]:
    """Interrupt ``action`` at each point in turn; where, and whether it returned all the same."""
    for number in range(1, 5000):
        strike = Strike(number, handler)
        try:
            with tracing(strike):
                action()
        except Interrupted:
            yield strike.where, False
        else:
            if not strike.where:
                return
            yield strike.where, True
    pytest.fail("it never came to its end")


def test_an_interrupted_publish_leaves_nothing_open(
    connection: Connection, queue_path: str
) -> None:
    """Wherever it is struck: others can write at once, and what is published next is committed."""
    producer = connection.Producer()
    producer.publish("first", routing_key="q")
    returned = points = 0
    other = apsw.Connection(queue_path)
    for where, done in strikes(lambda: producer.publish("struck", routing_key="q")):
        points += 1
        returned += done
        try:
            other.execute("BEGIN IMMEDIATE")
        except apsw.BusyError:
            pytest.fail(f"struck at {where}, it still holds the write lock")
        other.execute("ROLLBACK")
        producer.publish("after", routing_key="q")
        assert not connection.default_channel.store.deliveries.in_transaction(), where
    other.close()
    assert points > 100
    connection.release()
    with QueueDatabase(queue_path) as database:
        counts = dict(database.execute("SELECT payload, count(*) FROM task_queue GROUP BY payload"))
    assert counts["after"] == points
    assert counts["struck"] > returned


def test_a_handler_may_close_the_connection_that_is_publishing(
    broker_url: str, queue_path: str
) -> None:
    """As beat's of SIGTERM does: its exception comes out, and the file is left in order."""

    def connect() -> Connection:
        made = Connection(broker_url)
        made.default_channel  # noqa: B018 - connects
        return made

    connection = connect()
    points = returned = 0
    struck = strikes(
        lambda: connection.Producer().publish("struck", routing_key="q", retry=False),
        lambda: connection.release(),
    )
    for where, done in struck:
        points += 1
        returned += done
        other = apsw.Connection(queue_path)
        try:
            other.execute("BEGIN IMMEDIATE")
        except apsw.BusyError:
            pytest.fail(f"struck at {where}, it still holds the write lock")
        other.close()
        connection = connect()
        connection.Producer().publish("after", routing_key="q")
    assert points > 100
    connection.release()
    with QueueDatabase(queue_path) as database:
        counts = dict(database.execute("SELECT payload, count(*) FROM task_queue GROUP BY payload"))
    assert counts["after"] == points
    assert counts["struck"] >= returned
