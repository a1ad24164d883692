"""Requests that run only while their worker still owns the message."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from celery.concurrency.prefork import TaskPool as PreforkPool
from celery.exceptions import TaskRevokedError
from celery.utils.imports import symbol_by_name
from celery.utils.log import get_logger
from celery.worker import state
from kombu.asynchronous import get_event_loop

from kombu_sqlite import QueueBusyError, QueueDiskError, QueueReplacedError
from kombu_sqlite.channel import Channel

__all__ = ("LeasedRequest", "combine")

logger = get_logger(__name__)

#: A file locked or full is tried again after this long.
_RETRY_AFTER_S = 0.1


class LeasedRequest:
    """Mixed into a ``Request`` class: execution begins with a write on the delivery tag.

    If that write changes no row the lease was lost, the message is somebody else's, and the task
    does not run. In prefork it comes before the hand-over to the pool; in the other pools in the
    thread or greenlet that executes, so that what waits in the pool counts as not started.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Wrap ``execute_using_pool``: Celery's generated subclass replaces it without super."""
        super().__init_subclass__(**kwargs)
        execute = cls.__dict__.get("execute_using_pool")
        if execute is not None:
            cls.execute_using_pool = _starting_first(execute)  # type: ignore[attr-defined]

    @property
    def eta(self) -> datetime | None:
        """Hide an ETA that has passed: the file has kept the message until it was due.

        A worker would otherwise pass it through its timer and raise its prefetch count meanwhile.
        ``task.request.eta`` keeps it.
        """
        eta: datetime | None = super().eta  # type: ignore[misc]
        if eta is None or eta.tzinfo is None or eta > datetime.now(timezone.utc):
            return eta
        return None

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """Record the start where the pool has no process of its own to hand the task to."""
        channel = self._lease_channel()
        if channel is not None:
            channel.qos.mark_running(self._message.delivery_tag)  # type: ignore[attr-defined]
            if not self._lease_started:
                self._begin_until_written(channel)
        super().on_accepted(pid, time_accepted)  # type: ignore[misc]

    _lease_started = False
    _lease_waiting = False

    def _lease_channel(self) -> Channel | None:
        """Return the channel the start is reported to; None where nobody waits for it."""
        message = self._message  # type: ignore[attr-defined]
        channel = message.channel
        if isinstance(channel, Channel) and channel.explicit_start and not message.acknowledged:
            return channel
        return None

    def _begin_until_written(self, channel: Channel) -> None:
        """Record the start from a thread or greenlet that can wait for the file."""
        while True:
            try:
                self.begin(channel)
                return
            except (QueueBusyError, QueueDiskError) as exc:
                self.say_waiting(exc)
                time.sleep(_RETRY_AFTER_S)

    def say_waiting(self, reason: Exception) -> None:
        """Log, once, that the start waits for the file."""
        if not self._lease_waiting:
            self._lease_waiting = True
            logger.warning("%s waits to start: %s", self.id, reason)  # type: ignore[attr-defined]

    def begin(self, channel: Channel) -> None:
        """Record that execution begins.

        Raises:
            TaskRevokedError: the lease was lost; the task must not run here.
            QueueBusyError, QueueDiskError: nothing was recorded; try again.
        """
        message = self._message  # type: ignore[attr-defined]
        task_id = self.id  # type: ignore[attr-defined]
        try:
            started = channel.start(message.delivery_tag)
        except QueueReplacedError:
            started = False  # the message is gone with its file
        self._lease_started = True
        if started:
            return
        logger.warning(
            "Lease lost before the start, not executed here: queue=%s task_id=%s delivery_tag=%s",
            message.delivery.queue,
            task_id,
            message.delivery_tag,
        )
        state.task_ready(self)
        raise TaskRevokedError(task_id)


def _starting_first(execute: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``execute_using_pool`` so that in prefork the start is recorded before it."""

    @functools.wraps(execute)
    def execute_using_pool(self: Any, pool: Any, **kwargs: Any) -> Any:
        channel = self._lease_channel()
        if channel is None or not isinstance(pool, PreforkPool) or self._lease_started:
            return execute(self, pool, **kwargs)
        if self.revoked():
            raise TaskRevokedError(self.id)
        try:
            self.begin(channel)
        except (QueueBusyError, QueueDiskError) as exc:
            self.say_waiting(exc)
            hub = get_event_loop()
            if hub is not None:
                hub.call_later(_RETRY_AFTER_S, _execute_later, self, pool, channel)  # type: ignore[no-untyped-call]
                return None
            self._begin_until_written(channel)
        return execute(self, pool, **kwargs)

    return execute_using_pool


def _execute_later(request: Any, pool: Any, channel: Channel) -> None:
    """Try again what could not be started; a task refused then gives its process back."""
    try:
        request.execute_using_pool(pool)
    except TaskRevokedError:
        channel.on_refused()


@functools.cache
def _combined(base: type) -> type:
    return type(base.__name__, (LeasedRequest, base), {"__module__": base.__module__})


def combine(request: Any) -> type:
    """Return the request class ``request`` (a class or its name) with ours mixed in, once."""
    base: type = symbol_by_name(request)
    return base if issubclass(base, LeasedRequest) else _combined(base)  # type: ignore[arg-type]
