"""How fast messages are consumed and acknowledged, one by one."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

from kombu import Consumer

from tests.benchmarks.brokers import BROKERS, WITHOUT_CELERY
from tests.benchmarks.crew import Crew, CrewError, Port
from tests.benchmarks.measures import Benchmark, Metric, Values
from tests.benchmarks.messages import fill
from tests.benchmarks.sizes import Sizes
from tests.benchmarks.spaces import Space

__all__ = ("CONSUME", "CONSUME_TOGETHER", "PREFETCH")

PREFETCH = 64
_CONSUMERS = 4
#: Long enough for a broker that polls each second to be asked again.
_LOOK_S = 0.1
_GIVE_UP_S = 60.0


def _consume(
    port: Port, space: Space, sizes: Sizes, taken: Any, place: int, backlog: Any
) -> tuple[float, float]:
    """Consume until all processes together have had the backlog, or the time is up.

    Returns:
        When it began and ended, on the clock all processes share.
    """
    with ExitStack() as stack:
        connection = stack.enter_context(space.connection())
        if BROKERS[space.broker].local:  # nobody else can have filled it
            backlog[0] = fill(space, sizes.backlog, sizes.fill_seconds, connection=connection)

        def take(body: Any, message: Any) -> None:
            message.ack()
            taken[place] += 1

        consumer = Consumer(connection, [space.queue()], callbacks=[take], auto_declare=True)
        consumer.qos(prefetch_count=PREFETCH)
        port.ready()
        begun = last = time.monotonic()
        consumer.consume()
        while sum(taken) < backlog[0] and last - begun < sizes.consume_seconds:
            try:
                connection.drain_events(timeout=_LOOK_S)
                last = time.monotonic()
            except TimeoutError:
                if time.monotonic() - last > _GIVE_UP_S:
                    raise
        consumer.cancel()
        return begun, last


def _run(space: Space, sizes: Sizes, consumers: int) -> Values:
    with Crew() as crew:
        backlog = crew.share("l", 1)
        taken = crew.share("l", consumers)
        if not BROKERS[space.broker].local:
            backlog[0] = fill(space, sizes.backlog, sizes.fill_seconds)
        for place in range(consumers):
            crew.add(_consume, space, sizes, taken, place, backlog)
        spans = crew.run()
        if sum(taken) > backlog[0]:
            raise CrewError(f"{sum(taken)} deliveries of {backlog[0]} messages")
        seconds = max(end for _, end in spans) - min(begin for begin, _ in spans)
        return {"rate": sum(taken) / seconds}


def run_consume(space: Space, sizes: Sizes) -> Values:
    """One process empties a queue."""
    return _run(space, sizes, 1)


def run_consume_together(space: Space, sizes: Sizes) -> Values:
    """Several processes empty a queue."""
    return _run(space, sizes, _CONSUMERS)


CONSUME = Benchmark(
    "consume",
    run_consume,
    (Metric("rate", "consume and acknowledge, one process", "/s", higher=True),),
    WITHOUT_CELERY,
    slow_rounds=1,
)
CONSUME_TOGETHER = Benchmark(
    "consume-together",
    run_consume_together,
    (Metric("rate", f"consume and acknowledge, {_CONSUMERS} processes", "/s", higher=True),),
    tuple(name for name, broker in BROKERS.items() if not (broker.local or broker.variant)),
    slow_rounds=1,
)
