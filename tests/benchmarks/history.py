"""What rows that are in the way cost: the same step among them and in an empty file."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from kombu import Connection, Consumer, Queue

from kombu_sqlite import QueueDatabase
from tests.benchmarks.crew import Port, alone
from tests.benchmarks.measures import Benchmark, Metric, Values
from tests.benchmarks.sizes import Sizes
from tests.benchmarks.spaces import Space

__all__ = ("HISTORY",)

_QUEUE = "work"
_EMPTY = "empty"
_CHUNK = 50_000
_OPENINGS = 5

#: Rows such as Kombu writes, all of one state and moment.
_FILL = """
WITH RECURSIVE number(n) AS (SELECT :first UNION ALL SELECT n + 1 FROM number WHERE n + 1 < :last)
INSERT INTO task_queue (
    type, queue, status, priority, attempts, delivery_no, payload, headers, properties, task_id,
    locked_by, run_after_utc, processing_started_utc, finished_at_utc)
SELECT 'app.task' || (n % 20), :queue, :status, :priority, :attempts, :attempts,
       '[[' || n || '], {}, {}]', '{"id": "id-' || n || '"}',
       '{"content_type": "application/json", "content_encoding": "utf-8"}', 'id-' || n, :owner,
       strftime('%Y-%m-%d %H:%M:%f', 'now', :after),
       CASE WHEN :attempts THEN strftime('%Y-%m-%d %H:%M:%f', 'now') END,
       CASE WHEN :status = 'completed' THEN strftime('%Y-%m-%d %H:%M:%f', 'now') END
FROM number
"""


def _fill(database: QueueDatabase, count: int, **columns: Any) -> None:
    """Add rows, a bounded number in each transaction."""
    values = {
        "queue": _QUEUE,
        "status": "queued",
        "priority": 100,
        "attempts": 0,
        "owner": None,
        "after": "+0 days",
        **columns,
    }
    for first in range(0, count, _CHUNK):
        database.execute(_FILL, {**values, "first": first, "last": min(count, first + _CHUNK)})


def _finish(database: QueueDatabase, count: int) -> None:
    _fill(database, count, status="completed", attempts=1)


def _hold(database: QueueDatabase, count: int) -> None:
    """Rows in flight: held by this very process, so that nobody puts them back."""
    database.enqueue("app.first", queue="held")
    database.claim("held")
    owner = database.execute("SELECT locked_by FROM task_queue WHERE queue = 'held'")[0][0]
    _fill(database, count, status="processing", attempts=1, owner=owner)


def _declare(database: QueueDatabase, count: int) -> None:
    """Queues, each with one message."""
    with _connected(database) as connection:
        for number in range(count):
            Queue(f"other-{number}", routing_key=f"other-{number}")(
                connection.default_channel
            ).declare()
    for number in range(count):
        database.enqueue("app.task", queue=f"other-{number}")


@contextmanager
def _connected(database: QueueDatabase) -> Iterator[Any]:
    with Connection(f"sqlite:///{database.path}") as connection:
        yield connection


def _situations(sizes: Sizes) -> dict[str, Callable[[QueueDatabase], None]]:
    some, many = sizes.some_rows, sizes.many_rows
    return {
        _EMPTY: lambda database: None,
        "some-finished": partial(_finish, count=some),
        "many-finished": partial(_finish, count=many),
        "scheduled": partial(_fill, count=some, priority=1, after="+7 days"),
        "in-flight": partial(_hold, count=some),
        "queued": partial(_fill, count=many),
        "queues": partial(_declare, count=sizes.queues),
        "consumers": lambda database: None,  # they come once the files are open
    }


def _timed(step: Callable[[Any], Any], values: list[Any]) -> tuple[float, list[Any]]:
    """Seconds per value, and what the step gave for each."""
    begun = time.perf_counter()
    given = [step(value) for value in values]
    return (time.perf_counter() - begun) / len(values), given


def _steps(database: QueueDatabase, count: int) -> dict[str, float]:
    """Seconds of each step in one file: publish, claim, end, count."""
    nothing = [None] * count
    publish, _ = _timed(lambda _: database.enqueue("app.task", queue=_QUEUE), nothing)
    claim, claimed = _timed(lambda _: database.claim(_QUEUE)[0], nothing)
    end, _ = _timed(database.complete, claimed)
    stats, _ = _timed(lambda _: database.stats(), nothing[:2])
    return {"publish": publish, "claim": claim, "ack": end, "stats": stats}


def _idle_consumers(stack: ExitStack, database: QueueDatabase, count: int) -> None:
    """Consumers of another queue, registered and asleep."""
    connection = stack.enter_context(_connected(database))
    for _ in range(count):
        Consumer(
            connection.channel(), [Queue("idle", routing_key="idle")], callbacks=[print]
        ).consume()
    with suppress(TimeoutError):
        connection.drain_events(timeout=0.1)


def _measure(port: Port, space: Space, sizes: Sizes) -> Values:
    """Take the least of many short stretches, file by file in turn."""
    port.ready()
    least: dict[tuple[str, str], float] = {}
    with ExitStack() as stack:
        opened: dict[str, QueueDatabase] = {}
        for name, build in _situations(sizes).items():
            path = f"{space.folder}/{name}.db"
            opened[name] = stack.enter_context(QueueDatabase(path, retention=0))
            opened[name].initialize_schema()
            build(opened[name])
        _idle_consumers(stack, opened["consumers"], sizes.many_consumers)
        order = list(opened)
        for _ in range(sizes.repeats):
            random.shuffle(order)  # no file is always met after the same other one
            for name in order:
                for step, seconds in _steps(opened[name], sizes.steps).items():
                    least[name, step] = min(seconds, least.get((name, step), seconds))
    values: Values = {
        f"{name}-{step}": seconds / least[_EMPTY, step] for (name, step), seconds in least.items()
    }
    values.update({f"{_EMPTY}-{step}": least[_EMPTY, step] * 1e6 for step in _STEPS})
    return values


def _open(port: Port, path: Path) -> float:
    """Least milliseconds to open a file, look into it and close it."""
    port.ready()
    spent = []
    for _ in range(_OPENINGS):
        begun = time.perf_counter()
        with QueueDatabase(str(path)) as database:
            database.stats()
        spent.append((time.perf_counter() - begun) * 1e3)
    return min(spent)


def run_history(space: Space, sizes: Sizes) -> Values:
    """Build the files, time the steps in all of them, then open the largest anew."""
    values: Values = alone(_measure, space, sizes)
    for name in (_EMPTY, "many-finished"):
        values[f"open-{name}"] = alone(_open, Path(space.folder, f"{name}.db"))
    return values


_STEPS = {"publish": "publish", "claim": "claim", "ack": "end", "stats": "count by state"}
_TEXTS = {
    "some-finished": "{some_rows:,} finished rows",
    "many-finished": "{many_rows:,} finished rows",
    "scheduled": "{some_rows:,} rows due next week, of higher priority",
    "in-flight": "{some_rows:,} rows in flight",
    "queued": "{many_rows:,} rows queued",
    "queues": "{queues:,} queues",
    "consumers": "{many_consumers:,} other consumers",
}
HISTORY = Benchmark(
    "history",
    run_history,
    (
        *(
            Metric(f"{_EMPTY}-{step}", f"{text} in an empty file", "µs")
            for step, text in _STEPS.items()
        ),
        *(
            Metric(f"{name}-{step}", f"{text} with {rows}, against an empty file", "times")
            for name, rows in _TEXTS.items()
            for step, text in _STEPS.items()
        ),
        Metric(f"open-{_EMPTY}", "open an empty file, count by state, close it", "ms"),
        Metric("open-many-finished", "open {many_rows:,} rows, count by state, close it", "ms"),
    ),
    ("sqlite",),
    rounds=1,
)
