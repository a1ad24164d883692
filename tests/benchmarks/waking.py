"""How long from a publish until a consumer in another process has the message."""

from __future__ import annotations

import random
import resource
import time
from contextlib import suppress
from typing import Any

from kombu import Consumer

from tests.benchmarks.brokers import BROKERS
from tests.benchmarks.crew import Crew, Port
from tests.benchmarks.measures import Benchmark, Metric, Values, percentile
from tests.benchmarks.messages import Sender
from tests.benchmarks.sizes import Sizes
from tests.benchmarks.spaces import Space

__all__ = ("WAKE", "WAKE_LOADED", "WAKE_MANY")

#: Between two messages to a consumer that sleeps; at random, so that no poll is met in step.
_PAUSE_S = (0.005, 0.015)
#: Messages per second to a consumer that is busy.
_LOAD = 500
_CHANNELS = 20
_SETTLE_S = 0.5
_QUIET_S = 1.0
_ANSWER_S = 10.0
#: Longer than the second that some transports sleep between two polls, and cut short else.
_LOOK_S = 1.2


def _switches() -> int:
    """How often this thread has gone to sleep."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


def _cpu_s() -> float:
    spent = resource.getrusage(resource.RUSAGE_SELF)
    return spent.ru_utime + spent.ru_stime


def _receive(
    port: Port, space: Space, channels: int, came: Any, resting: Any
) -> tuple[list[float], float, float]:
    """Note how old each message is until told to stop.

    Returns:
        Seconds from publish to callback; sleeps of the loop's thread and seconds of CPU, less what
        they were without messages.
    """
    ages: list[float] = []

    def take(body: Any, message: Any) -> None:
        ages.append(time.monotonic() - body)
        message.ack()
        came.release()

    with space.connection() as connection:
        for _ in range(channels):
            consumer = Consumer(connection.channel(), [space.queue()], callbacks=[take])
            consumer.qos(prefetch_count=1)
            consumer.consume()

        def drain(until: float | None) -> None:
            while not (port.stopped() if until is None else time.monotonic() > until):
                left_s = _LOOK_S if until is None else max(0.01, until - time.monotonic())
                with suppress(TimeoutError):
                    connection.drain_events(timeout=left_s)

        port.ready()
        drain(time.monotonic() + _SETTLE_S)
        begun, switches, cpu = time.monotonic(), _switches(), _cpu_s()
        drain(begun + _QUIET_S)
        quiet_s = time.monotonic() - begun
        idle = (_switches() - switches) / quiet_s, (_cpu_s() - cpu) / quiet_s
        resting.release()
        begun, switches, cpu = time.monotonic(), _switches(), _cpu_s()
        drain(None)
        passed = time.monotonic() - begun
        return (
            ages,
            _switches() - switches - idle[0] * passed,
            _cpu_s() - cpu - idle[1] * passed,
        )


def _ping(port: Port, space: Space, sizes: Sizes, came: Any, resting: Any, receivers: int) -> int:
    """Send one message after the other, each once the last has come; return how many."""
    with space.connection() as connection:
        sender = Sender(space, connection)
        port.ready()
        for _ in range(receivers):
            resting.acquire()
        sent = 0
        for _ in sender.count_until(sizes.pings, sizes.ping_seconds):
            time.sleep(random.uniform(*_PAUSE_S))  # noqa: S311 - no secret
            sender.send(time.monotonic())
            if not came.acquire(timeout=_ANSWER_S):
                raise TimeoutError(f"a message did not come within {_ANSWER_S:g} s")
            sent += 1
        return sent


def _load(port: Port, space: Space, sizes: Sizes, came: Any, resting: Any, receivers: int) -> int:
    """Send at a steady rate, whether or not the last has come; return how many."""
    with space.connection() as connection:
        sender = Sender(space, connection)
        port.ready()
        for _ in range(receivers):
            resting.acquire()
        begun = time.monotonic()
        sent = 0
        for number in range(int(_LOAD * sizes.loaded_seconds)):
            due = begun + number / _LOAD
            time.sleep(max(0.0, due - time.monotonic()))
            sender.send(time.monotonic())
            sent += 1
        for _ in range(sent):
            if not came.acquire(timeout=_ANSWER_S):
                raise TimeoutError(f"a message did not come within {_ANSWER_S:g} s")
        return sent


def _run(space: Space, sizes: Sizes, send: Any, processes: int = 1, channels: int = 1) -> Values:
    with Crew() as crew:
        came, resting = crew.semaphore(), crew.semaphore()
        receivers = [crew.add(_receive, space, channels, came, resting) for _ in range(processes)]
        sender = crew.add(send, space, sizes, came, resting, processes)
        crew.begin()
        sent = sender.receive("result")
        crew.stop(*receivers)
        reports = [receiver.receive("result") for receiver in receivers]
    ages = [age * 1e3 for report in reports for age in report[0]]
    return {
        "p50": percentile(ages, 50),
        "p99": percentile(ages, 99),
        "wakes": sum(report[1] for report in reports) / sent,
        "cpu": sum(report[2] for report in reports) / sent * 1e3,
    }


def run_wake(space: Space, sizes: Sizes) -> Values:
    """One consumer, asleep whenever a message comes."""
    return _run(space, sizes, _ping)


def run_wake_loaded(space: Space, sizes: Sizes) -> Values:
    """One consumer, with messages at a steady rate."""
    return _run(space, sizes, _load)


def run_wake_many(space: Space, sizes: Sizes) -> Values:
    """A few and many consumers asleep on one queue, several in a process."""
    values: Values = {}
    for name, consumers in (("few", sizes.few_consumers), ("many", sizes.many_consumers)):
        processes = max(2, consumers // _CHANNELS)
        found = _run(space, sizes, _ping, processes, consumers // processes)
        values.update({f"{name}-{key}": value for key, value in found.items()})
    return values


_REMOTE = tuple(name for name, broker in BROKERS.items() if not broker.local)
WAKE = Benchmark(
    "wake",
    run_wake,
    (
        Metric("p50", "publish to a sleeping consumer in another process, p50", "ms"),
        Metric("p99", "publish to a sleeping consumer in another process, p99", "ms"),
        Metric("wakes", "times the sleeping consumer's thread runs per message", ""),
        Metric("cpu", "CPU of the sleeping consumer per message", "ms"),
    ),
    _REMOTE,
    slow_rounds=1,
)
WAKE_LOADED = Benchmark(
    "wake-loaded",
    run_wake_loaded,
    (
        Metric("p50", f"publish to a consumer at {_LOAD} messages/s, p50", "ms"),
        Metric("p99", f"publish to a consumer at {_LOAD} messages/s, p99", "ms"),
        Metric("cpu", f"CPU of a consumer at {_LOAD} messages/s per message", "ms"),
    ),
    # the others take fewer than that
    tuple(n for n in _REMOTE if not (BROKERS[n].slow or BROKERS[n].variant)),
)
WAKE_MANY = Benchmark(
    "wake-many",
    run_wake_many,
    tuple(
        Metric(f"{name}-{key}", text.format(consumers=f"{{{name}_consumers}}"), unit)
        for name in ("few", "many")
        for key, text, unit in (
            ("p50", "publish to {consumers} sleeping consumers of one queue, p50", "ms"),
            ("p99", "publish to {consumers} sleeping consumers of one queue, p99", "ms"),
            ("wakes", "times threads of {consumers} sleeping consumers run per message", ""),
            ("cpu", "CPU of {consumers} sleeping consumers per message", "ms"),
        )
    ),
    ("sqlite", "redis", "rabbitmq-unconfirmed"),
    rounds=2,
)
