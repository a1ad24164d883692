"""What a message costs on the disk: bytes in the write-ahead log, bytes in the file."""

from __future__ import annotations

import os
from typing import Any

import apsw
from kombu import Consumer

from kombu_sqlite import QueueDatabase
from tests.benchmarks.consuming import PREFETCH
from tests.benchmarks.crew import Port, alone
from tests.benchmarks.measures import Benchmark, Metric, Values
from tests.benchmarks.messages import KILOBYTE, TWENTY, Sender
from tests.benchmarks.sizes import Sizes
from tests.benchmarks.spaces import Space

__all__ = ("STORE",)


class Log:
    """The write-ahead log of a file, kept from starting over while this is open.

    A reader that began while the log held something keeps every later frame in it, so what the log
    grows by is what was written into it.
    """

    def __init__(self, path: str) -> None:
        self._path = path + "-wal"
        self._reader = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READWRITE)
        self._reader.execute("BEGIN; SELECT count(*) FROM task_queue").fetchall()
        self._size = os.stat(self._path).st_size

    def grown(self) -> int:
        """Bytes since the last time."""
        before, self._size = self._size, os.stat(self._path).st_size
        if self._size < before:
            raise RuntimeError("the log has started over")
        return self._size - before

    def close(self) -> None:
        """Let the log go."""
        self._reader.close()


def _consume(space: Space, connection: Any, count: int) -> None:
    left = count

    def take(body: Any, message: Any) -> None:
        nonlocal left
        left -= 1
        message.ack()

    consumer = Consumer(connection, [space.queue()], callbacks=[take])
    consumer.qos(prefetch_count=PREFETCH)
    with consumer:
        while left:
            connection.drain_events(timeout=10)


def _log_of(space: Space, size: int, count: int) -> tuple[float, float, float]:
    """Bytes of log for a message: published, then claimed and ended singly, or with others."""
    with space.connection() as connection:
        sender = Sender(space, connection, size=size)
        sender.send()
        log = Log(space.path)
        for _ in range(2 * count):
            sender.send()
        published = log.grown() / (2 * count)
        with QueueDatabase(space.url) as database:
            for _ in range(count + 1):
                database.complete(database.claim(space.queue().name)[0])
        singly = log.grown() / (count + 1)
        _consume(space, connection, count)
        together = log.grown() / count
        log.close()
    return published, singly, together


def _measure(port: Port, space: Space, sizes: Sizes) -> Values:
    port.ready()
    values: Values = {}
    names = ("published", "singly", "together")
    with QueueDatabase(space.url) as database:
        for name, size in (("small", KILOBYTE), ("large", TWENTY)):
            figures = _log_of(space, size, sizes.stored)
            values.update(
                {f"{name}-{key}": value for key, value in zip(names, figures, strict=True)}
            )
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            rows = database.execute("SELECT count(*) FROM task_queue")[0][0]
            values[f"{name}-file"] = os.stat(space.path).st_size / rows
            database.execute("DELETE FROM task_queue")
            database.execute("VACUUM")
    return values


def run_store(space: Space, sizes: Sizes) -> Values:
    """Messages of two sizes, published, claimed, ended, kept."""
    values: Values = alone(_measure, space, sizes)
    return values


STORE = Benchmark(
    "store",
    run_store,
    tuple(
        Metric(f"{name}-{key}", f"{text}, {size}", "B")
        for name, size in (("small", "1 KB"), ("large", "20 KB"))
        for key, text in (
            ("published", "log written per message published singly"),
            ("singly", "log written per message claimed and ended singly"),
            ("together", f"log written per message consumed, prefetch {PREFETCH}"),
            ("file", "file per message that has ended"),
        )
    ),
    ("sqlite",),
    rounds=1,
)
