"""Requests that run only while their worker still owns the message."""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from celery.concurrency.prefork import TaskPool as PreforkPool
from celery.exceptions import TaskRevokedError
from celery.utils.imports import symbol_by_name
from celery.utils.log import get_logger
from celery.worker import state

from kombu_sqlite.channel import Channel

__all__ = ("LeasedRequest", "combine")

logger = get_logger(__name__)


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
        if not getattr(self, "_lease_started", False):
            self.begin()
        message = self._message  # type: ignore[attr-defined]
        if isinstance(message.channel, Channel):
            message.channel.qos.mark_running(message.delivery_tag)
        super().on_accepted(pid, time_accepted)  # type: ignore[misc]

    def begin(self) -> None:
        """Record that execution begins.

        Raises:
            TaskRevokedError: the lease was lost; the task must not run here.
        """
        message = self._message  # type: ignore[attr-defined]
        channel = message.channel
        self._lease_started = True
        if not isinstance(channel, Channel) or not channel.explicit_start:
            return
        if message.acknowledged or channel.start([message.delivery_tag]):
            return
        logger.warning(
            "Lease lost before the start, not executed here: queue=%s task_id=%s delivery_tag=%s",
            message.delivery.queue,
            self.id,  # type: ignore[attr-defined]
            message.delivery_tag,
        )
        state.task_ready(self)
        raise TaskRevokedError(self.id)  # type: ignore[attr-defined]


def _starting_first(execute: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(execute)
    def execute_using_pool(self: Any, pool: Any, **kwargs: Any) -> Any:
        if isinstance(pool, PreforkPool) and not self.revoked():
            self.begin()
        return execute(self, pool, **kwargs)

    return execute_using_pool


@functools.cache
def _combined(base: type) -> type:
    return type(base.__name__, (LeasedRequest, base), {"__module__": base.__module__})


def combine(request: Any) -> type:
    """Return the request class ``request`` (a class or its name) with ours mixed in, once."""
    base: type = symbol_by_name(request)
    return base if issubclass(base, LeasedRequest) else _combined(base)  # type: ignore[arg-type]
