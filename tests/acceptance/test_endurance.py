"""Descriptors, threads, rows and memory of a process do not grow with what it has done.

The long forms: ``pytest -m slow -s tests/acceptance/test_endurance.py``
"""

from __future__ import annotations

import gc
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import pytest
from celery import Celery
from celery.exceptions import TimeoutError as ResultTimeout
from kombu import Connection, Consumer, Queue

from kombu_sqlite import QueueDatabase

Cycle = Callable[[int], None]

#: Rows and answers that cycles leave behind are thinned out after so many, as retention would.
_THIN_EVERY = 1000

LONG = [pytest.mark.slow, pytest.mark.timeout(7200)]
SHORT_AND_LONG = pytest.mark.parametrize(
    "cycles",
    [pytest.param(100, id="short"), pytest.param(10_000, id="long", marks=LONG)],
)


class Holdings:
    """What this process and the files beside the queue hold."""

    def __init__(self, path: str) -> None:
        self._path = path

    def now(self) -> dict[str, Any]:
        """Count it; the rows are counted by whoever leaves nothing behind itself."""
        gc.collect()
        with QueueDatabase(self._path) as database:
            rows = {
                table: database.execute(f"SELECT count(*) FROM {table}")[0][0]
                for table in ("workers", "consumers", "queues", "transient_messages")
            }
        folder = Path(self._path).parent
        return {
            "descriptors": len(os.listdir("/proc/self/fd")),
            "threads": len(os.listdir("/proc/self/task")),
            "bells": len(list(folder.glob("*-bell-*"))),
            "files": len(os.listdir(folder)),
            **rows,
        }


def use_kombu(path: str) -> Cycle:
    """Connect, publish, get by a consumer of two queues, acknowledge, leave."""
    queues = [Queue("one", routing_key="one"), Queue("two", routing_key="two", auto_delete=True)]

    def cycle(turn: int) -> None:
        got: list[Any] = []

        def take(body: Any, message: Any) -> None:
            got.append(body)
            message.ack()

        with (
            Connection(f"sqlite:///{path}") as connection,
            connection.channel() as channel,
            Consumer(channel, queues, callbacks=[take]),
        ):
            producer = connection.Producer()
            for queue in queues:
                producer.publish(turn, routing_key=queue.name)
            while len(got) < 2:
                connection.drain_events(timeout=5)
        assert got == [turn, turn]

    return cycle


def use_database(path: str) -> Cycle:
    """Open, publish, claim, end, close."""

    def cycle(_: int) -> None:
        with QueueDatabase(path) as database:
            database.enqueue("t")
            (delivery,) = database.claim()
            database.complete(delivery)

    return cycle


def use_results(path: str) -> Cycle:
    """Wait for results: one that is there, and one that does not come, by a new app each time."""

    def cycle(turn: int) -> None:
        url = f"sqlite:///{path}"
        with Celery("waiting", broker=url, backend=url, set_as_current=False) as app:
            app.backend.mark_as_done(f"there-{turn}", turn)
            assert app.AsyncResult(f"there-{turn}").get(timeout=5) == turn
            app.AsyncResult(f"there-{turn}").forget()
            with pytest.raises(ResultTimeout):
                app.AsyncResult("never").get(timeout=0.001)

    return cycle


def count_before_and_after(
    path: str, use: Callable[[str], Cycle], cycles: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run so many cycles in this process; what is let go of by threads has five seconds."""
    cycle, holdings = use(path), Holdings(path)
    for turn in range(10):
        cycle(turn)
    before = holdings.now()
    for turn in range(cycles):
        cycle(turn)
        if turn % _THIN_EVERY == 0:
            with QueueDatabase(path) as database:
                database.execute("DELETE FROM task_queue")
    deadline = time.monotonic() + 5
    while (after := holdings.now()) != before and time.monotonic() < deadline:
        time.sleep(0.01)
    return before, after


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors in /proc")
@SHORT_AND_LONG
@pytest.mark.parametrize("use", [use_kombu, use_database, use_results])
def test_many_connections_leave_nothing_open(
    queue_path: str, use: Callable[[str], Cycle], cycles: int
) -> None:
    """As many descriptors, threads, side files and rows of workers at the end as at the start.

    Counted in a process of its own: other tests' threads come and go in this one.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        before, after = pool.submit(count_before_and_after, queue_path, use, cycles).result()
    print(f"\n{use.__name__}, {cycles} cycles: {before} then {after}")  # noqa: T201
    assert before == after


class Traffic:
    """Publishes and consumes in one process; what has ended is deleted, as retention would."""

    def __init__(self, connection: Connection, path: str) -> None:
        self._connection = connection
        self._path = path
        self._producer = connection.Producer()
        self._got: Counter[str] = Counter()

    def take(self, body: Any, message: Any) -> None:
        """Acknowledge one message."""
        self._got["messages"] += 1
        message.ack()

    def run(self, messages: int, batch: int = 500) -> int:
        """Send so many through; return the resident memory in KiB."""
        self._got.clear()
        with Consumer(self._connection, [Queue("q", routing_key="q")], callbacks=[self.take]) as it:
            it.qos(prefetch_count=100)
            for sent in range(0, messages, batch):
                for number in range(sent, sent + batch):
                    self._producer.publish({"n": number, "pad": "x" * 200}, routing_key="q")
                while self._got["messages"] < sent + batch:
                    self._connection.drain_events(timeout=10)
                with QueueDatabase(self._path) as database:
                    database.execute("DELETE FROM task_queue WHERE status = 'completed'")
        gc.collect()
        return int(psutil.Process().memory_info().rss // 1024)


@pytest.fixture
def traffic(queue_path: str, broker_url: str) -> Iterator[Traffic]:
    """Over one connection that stays open."""
    with Connection(broker_url) as connection:
        yield Traffic(connection, queue_path)


@pytest.mark.parametrize(
    ("messages", "at_most_kib"),
    [
        pytest.param(10_000, 1_500, id="short"),
        pytest.param(1_000_000, 10_000, id="long", marks=LONG),
    ],
)
def test_memory_does_not_grow_with_messages(
    traffic: Traffic, messages: int, at_most_kib: int
) -> None:
    """A leak of 150 bytes a message shows in the short form, one of 10 in the long."""
    before = traffic.run(3_000)
    after = traffic.run(messages)
    print(f"\n{messages} messages: {before} KiB, then {after} KiB")  # noqa: T201
    assert after - before < at_most_kib
