"""Starts and stops in a worker what the file needs, nothing else."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from celery import bootsteps
from celery.worker.consumer import tasks
from celery.worker.consumer.control import Control
from celery.worker.control import Panel

from kombu_sqlite.channel import Channel

from .control import REVOKING, revoke_rows
from .draining import drain_before_flush
from .malformed import refuse_malformed, watch_refusals
from .owed import Payer

__all__ = ("Leases", "Outcomes")


class Leases(bootsteps.StartStopStep):
    """Tells the worker's channel that starts are reported by the requests themselves.

    So a message that was only prefetched when its worker died counts no death, and one that runs
    keeps its lease when the connection is closed and opened again. One that is no task fails.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)
    _channel: Channel | None = None

    def __init__(self, c: Any, **kwargs: Any) -> None:
        super().__init__(c, **kwargs)
        tasks.logger.addFilter(_is_true)  # of a setting that `start` honours

    def start(self, c: Any) -> None:
        """Mark the channel the task consumer uses, and have the pool drained before it forgets."""
        drain_before_flush(c.pool)
        channel = c.task_consumer.channel
        if isinstance(channel, Channel):
            channel.explicit_start = True
            channel.on_refused = getattr(c.controller, "_quick_release", channel.on_refused)
            channel.on_callback_error = refuse_malformed
            watch_refusals(c)
            channel.store.session().describe(c.hostname, c.pool.num_processes if c.pool else None)
            if c.app.conf.worker_disable_prefetch:
                channel.qos.hold_at_most = functools.partial(_processes, c)
            self._channel = channel

    def shutdown(self, c: Any) -> None:
        """Let the channel give everything back: the pool has stopped, nothing runs any more."""
        if self._channel is not None:
            self._channel.qos.forget_running()


def _processes(c: Any) -> int:
    """Return how many tasks the worker can execute at a time, as ``Tasks`` does for Redis."""
    processes: int = getattr(c.controller, "max_concurrency", None) or c.pool.num_processes
    return processes


def _is_true(record: logging.LogRecord) -> bool:
    return "worker_disable_prefetch is only supported for Redis" not in record.getMessage()


class Outcomes(bootsteps.StartStopStep):
    """Stores the results of tasks that the broker ended; lets revokes reach the rows."""

    requires = ("celery.worker.consumer.tasks:Tasks", "celery.worker.consumer.control:Control")
    _payer: Payer | None = None

    def start(self, c: Any) -> None:
        """Start the thread, and answer this worker's remote ``revoke`` with a durable one."""
        channel = c.task_consumer.channel
        if not isinstance(channel, Channel):
            return

        def tell(kind: str, **fields: Any) -> None:
            if c.event_dispatcher is not None and c.event_dispatcher.enabled:
                c.event_dispatcher.send(kind, **fields)

        self._payer = Payer(c.app, channel.store, tell)
        self._payer.start()
        for step in c.blueprint.order:
            if isinstance(step, Control):
                node = step.box.node
                node.handlers = {**node.handlers, **_durable_handlers(c.app, tell)}

    def stop(self, c: Any) -> None:
        """Stop the thread; it starts again with the next connection."""
        payer, self._payer = self._payer, None
        if payer is not None:
            payer.stop()

    shutdown = stop


def _durable_handlers(app: Any, tell: Callable[..., None]) -> dict[str, Any]:
    """Return remote control commands that revoke in the file before they do in memory.

    So a revoke sent by a process that knows nothing of this package lasts as well.
    """

    def durable(command: str, handler: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(handler)
        def handle(state: Any, **arguments: Any) -> Any:
            revoke_rows(app, command, arguments, tell)
            return handler(state, **arguments)

        return handle

    return {command: durable(command, Panel.data[command]) for command in REVOKING}
