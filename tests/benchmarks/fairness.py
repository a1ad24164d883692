"""A trickle of messages beside a flood: how old each is when it arrives."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

from kombu import Consumer

from tests.benchmarks.crew import Crew, Port
from tests.benchmarks.measures import Benchmark, Metric, Values, percentile
from tests.benchmarks.messages import KILOBYTE, Sender, fill
from tests.benchmarks.sizes import Sizes
from tests.benchmarks.spaces import Space

__all__ = ("FAIRNESS", "PRIORITIES")

_MANY = 8
_RATE = 50
_PREFETCH = 10
#: Makes the consumer the bottleneck with every broker, so that the flood stays one.
_WORK_S = 0.001
_LOOK_S = 0.1


def _serve(
    port: Port, space: Space, queues: tuple[str, ...], work_s: float, came: Any
) -> list[float]:
    """Consume until told to stop; how old the messages of the trickle were, in seconds."""
    ages: list[float] = []

    def take(body: Any, message: Any) -> None:
        if isinstance(body, float):
            ages.append(time.monotonic() - body)
            came.release()
        elif work_s:
            time.sleep(work_s)
        message.ack()

    with space.connection() as connection:
        consumer = Consumer(connection, [space.queue(name) for name in queues], callbacks=[take])
        consumer.qos(prefetch_count=_PREFETCH)
        port.ready()
        with consumer:
            while not port.stopped():
                with suppress(TimeoutError):
                    connection.drain_events(timeout=_LOOK_S)
    return ages


def _trickle(
    port: Port, space: Space, sizes: Sizes, queue: str, priority: int | None, came: Any
) -> list[float]:
    """Send at a low rate, then wait until all have come; seconds each publish took."""
    spent = []
    with space.connection() as connection:
        sender = Sender(space, connection, queue)
        port.ready()
        time.sleep(0.3)  # the flood has begun
        begun = time.monotonic()
        for number in range(int(_RATE * sizes.trickle_seconds)):
            time.sleep(max(0.0, begun + number / _RATE - time.monotonic()))
            at = time.monotonic()
            sender.send(at, priority)
            spent.append(time.monotonic() - at)
        for _ in spent:
            came.acquire(timeout=30)
    return spent


def _flood(port: Port, space: Space) -> None:
    """Send as fast as it goes until told to stop."""
    with space.connection() as connection:
        sender = Sender(space, connection, size=KILOBYTE)
        port.ready()
        while not port.stopped():
            sender.send()


def _run(
    space: Space,
    sizes: Sizes,
    *,
    queues: tuple[str, ...] = ("work", "trickle"),
    work_s: float = 0.0,
    priority: int | None = None,
    producers: int = 0,
    consumers: int = 1,
) -> tuple[list[float], list[float]]:
    """Ages of the trickle's messages and durations of its publishes, in milliseconds."""
    with Crew() as crew:
        came = crew.semaphore()
        servers = [crew.add(_serve, space, queues, work_s, came) for _ in range(consumers)]
        floods = [crew.add(_flood, space) for _ in range(producers)]
        trickle = crew.add(_trickle, space, sizes, queues[-1], priority, came)
        crew.begin()
        spent = trickle.receive("result")
        crew.stop(*floods, *servers)
        ages = [age for server in servers for age in server.receive("result")]
    if len(ages) != len(spent):
        raise TimeoutError(f"{len(ages)} of {len(spent)} messages came")
    return [age * 1e3 for age in ages], [duration * 1e3 for duration in spent]


def _flooded(space: Space, sizes: Sizes, priority: int | None = None) -> None:
    fill(space, sizes.backlog, sizes.fill_seconds, priority=priority)


def run_fairness(space: Space, sizes: Sizes) -> Values:
    """A flood in another queue, one of low priority, many producers, many consumers."""
    _flooded(space, sizes)
    other, _ = _run(space, sizes, work_s=_WORK_S)
    values: Values = {"queue-p50": percentile(other, 50), "queue-p99": percentile(other, 99)}

    many, spent = _run(space, sizes, producers=_MANY)
    values.update({"producers-p99": percentile(many, 99), "publish-p99": percentile(spent, 99)})
    reverse, _ = _run(space, sizes, queues=("trickle",), consumers=_MANY)
    values.update({"consumers-p99": percentile(reverse, 99)})
    return values


def run_priorities(space: Space, sizes: Sizes) -> Values:
    """A flood of low priority in the same queue."""
    assert space.priorities is not None
    urgent, background = space.priorities
    if space.broker.startswith("rabbitmq"):  # it orders only queues that were declared so
        space = replace(space, queue_arguments={"x-max-priority": 10})
    _flooded(space, sizes, background)
    ages, _ = _run(space, sizes, queues=("work",), work_s=_WORK_S, priority=urgent)
    return {"p50": percentile(ages, 50), "p99": percentile(ages, 99)}


_BROKERS = ("sqlite", "redis", "rabbitmq-unconfirmed")
FAIRNESS = Benchmark(
    "fairness",
    run_fairness,
    (
        Metric("queue-p50", "a trickle beside a flooded queue, one consumer of both, p50", "ms"),
        Metric("queue-p99", "a trickle beside a flooded queue, one consumer of both, p99", "ms"),
        Metric("producers-p99", f"a trickle beside {_MANY} producers, one consumer, p99", "ms"),
        Metric("publish-p99", f"one publish of a trickle beside {_MANY} producers, p99", "ms"),
        Metric("consumers-p99", f"a trickle for {_MANY} consumers, p99", "ms"),
    ),
    _BROKERS,
    rounds=2,
)
PRIORITIES = Benchmark(
    "priorities",
    run_priorities,
    (
        Metric("p50", "a trickle of high priority in a flooded queue, p50", "ms"),
        Metric("p99", "a trickle of high priority in a flooded queue, p99", "ms"),
    ),
    _BROKERS,
    rounds=2,
)
