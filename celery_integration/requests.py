"""Requests that write the life of a task into its row.

Who writes what: the start comes before the task's body, as a condition for it. The executing
process ends the row with its result, where the backend is the same file. Whatever else ends a task
(an ignored result, a lost process, a limit, a refusal) the worker's main process writes, in
batches; the first end wins.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from celery.exceptions import Reject, TaskRevokedError, TimeLimitExceeded, WorkerLostError
from celery.utils.imports import symbol_by_name
from celery.utils.log import get_logger
from celery.worker import state
from celery.worker.request import Request

from kombu_sqlite import DELIVERY_HEADER, QueueBusyError, QueueDiskError, QueueReplacedError
from kombu_sqlite.channel import Channel

from .continuing import continuing
from .endings import DEADLY, REJECTIONS_ARE_STORED, End, as_lost, end_of
from .malformed import check_task
from .starting import RETRY_AFTER_S, starting_first

__all__ = ("LeasedRequest", "combine")

logger = get_logger(__name__)


_KILLED = "worker lost: its worker was shut down while it ran"


class LeasedRequest(Request):
    """A request whose task begins and ends with writes on its delivery tag.

    It comes before a user's own class, so that a start or an end is written whatever that one does;
    what the user's class overrides is called in turn.

    If the first changes no row the lease was lost or the task cancelled, and it does not run. In
    prefork it comes before the hand-over to the pool; in the other pools in the thread or greenlet
    that executes, so that what waits in the pool counts as not started.

    An early ack frees the place in the prefetch count and keeps the lease: the row ends when the
    task does.
    """

    _lease_started = False
    _lease_waiting = False
    _lease_accepting = False  # inside on_accepted, where an ack is an early one
    _lease_early = False
    _lease_over = False
    _lease_dying = False  # the execution took its process with it
    _lease_timed_out = False
    _lease_killed = False  # as a greenlet
    _lease_refused: Reject | None = None  # raised by the task, and still to be stored
    _lease_end: End = ("completed", None)

    def __init__(self, message: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(message, *args, **kwargs)
        channel = message.channel
        if isinstance(channel, Channel) and channel.explicit_start:
            check_task(self, self._body if self._decoded else message.payload)
            delivery = (channel.store.database.path, message.delivery_tag)
            self._request_dict[DELIVERY_HEADER] = delivery

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Wrap what Celery's generated subclass replaces without calling super."""
        super().__init_subclass__(**kwargs)
        execute = cls.__dict__.get("execute_using_pool")
        if execute is not None:
            cls.execute_using_pool = starting_first(execute)
        on_success = cls.__dict__.get("on_success")
        if on_success is not None:
            cls.on_success = _ending_last(on_success)

    @functools.cached_property
    def eta(self) -> datetime | None:
        """Hide an ETA that has passed: the file has kept the message until it was due.

        A worker would otherwise pass it through its timer and raise its prefetch count meanwhile.
        ``task.request.eta`` keeps it. Each look tells the same, as it may pass in between.
        """
        eta: datetime | None = super().eta
        if eta is None or eta.tzinfo is None or eta > datetime.now(timezone.utc):
            return eta
        return None

    @property
    def lease_channel(self) -> Channel | None:
        """The channel that starts and ends are reported to; None on another broker."""
        channel = self._message.channel
        if isinstance(channel, Channel) and channel.explicit_start:
            return channel
        return None

    @property
    def lease_tag(self) -> str:
        """The delivery tag that the row's start and end are matched by."""
        tag: str = self._message.delivery_tag
        return tag

    def revoked(self) -> bool:
        """Return whether the task has expired; whether it was revoked its row says, at the start.

        The worker's own memory of revoked ids outlives a cancel: a task put back would stay
        revoked. It serves where the row does not know the id, as in Celery's protocol 1.
        """
        if self.lease_channel is None or self._message.delivery.task_id is None:
            return bool(super().revoked())
        if self._already_revoked:
            return True
        if self.expires and self.maybe_expire():
            self._announce_revoked("expired", False, None, True)
            return True
        users = super().revoked
        is_celerys = getattr(users, "__func__", None) is Request.revoked
        return not is_celerys and bool(users())

    # -- the start -----------------------------------------------------------------------------

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """Record the start where the pool has no process of its own to hand the task to."""
        channel = self.lease_channel
        if channel is not None:
            held = channel.qos.mark_running(self.lease_tag)
            if not self._lease_started:
                if not held:
                    self.say_started(False)  # the channel was closed and gave it back
                self.begin_until_written(channel)
            self._lease_accepting = not self.task.acks_late
        super().on_accepted(pid, time_accepted)

    def begin_until_written(self, channel: Channel) -> None:
        """Record the start from a thread or greenlet that can wait for the file."""
        while True:
            try:
                self.begin(channel)
                return
            except (QueueBusyError, QueueDiskError) as exc:
                self.say_waiting(exc)
                time.sleep(RETRY_AFTER_S)

    def say_waiting(self, reason: Exception) -> None:
        """Log, once, that the start waits for the file."""
        if not self._lease_waiting:
            self._lease_waiting = True
            logger.warning("%s waits to start: %s", self.id, reason)

    def begin(self, channel: Channel) -> None:
        """Record that execution begins.

        Raises:
            TaskRevokedError: the task was cancelled or the lease lost; it must not run here.
            QueueBusyError, QueueDiskError: nothing was recorded; try again.
        """
        early = not self.task.acks_late
        try:
            started = channel.start(self.lease_tag, early)
        except QueueReplacedError:
            started = False  # the message is gone with its file
        self.say_started(started)

    def say_started(self, started: bool) -> None:
        """Take in whether the start changed the row.

        Raises:
            TaskRevokedError: it did not; the task must not run here.
        """
        self._lease_started = True
        if started:
            return
        task_id = self.id
        self._lease_over = True
        logger.warning(
            "Cancelled, or lease lost, before the start; not executed here: "
            "queue=%s task_id=%s delivery_tag=%s",
            self._message.delivery.queue,
            task_id,
            self.lease_tag,
        )
        state.task_ready(self)
        raise TaskRevokedError(task_id)

    # -- the end -------------------------------------------------------------------------------

    def acknowledge(self) -> None:
        """Acknowledge: early, where the pool has just accepted the task, or for good."""
        channel = self.lease_channel
        if channel is not None and self._lease_accepting:
            self._lease_accepting = False
            self._lease_early = True
            self._say_acknowledged()
            channel.accept(self.lease_tag)
        elif channel is not None:
            self.end_lease(*self._lease_end)
            self._say_acknowledged()  # also where it was over before
        super().acknowledge()  # Celery's own has nothing left to do

    def _say_acknowledged(self) -> None:
        self.acknowledged = True
        self._message._state = "ACK"

    def end_lease(self, action: str, error: str | None = None) -> None:
        """End the row, once; what the executing process has written stands."""
        channel = self.lease_channel
        if channel is not None and not self._lease_over:
            self._lease_over = True
            self._say_acknowledged()
            channel.end(self.lease_tag, action, error, quiet=True)

    def reject(self, requeue: bool = False) -> None:
        """Put the task back, or end it failed; after an early ack it can only fail."""
        if self.lease_channel is None:
            super().reject(requeue)
            return
        if self._lease_over:
            return
        if requeue and not self._lease_early:
            self.end_lease("died" if self._lease_dying else "requeue")
        else:
            refused, self._lease_refused = self._lease_refused, None
            if refused is not None:
                self._store_failure(refused)
            self.end_lease("failed", self._lease_end[1] or "rejected")
        self.send_event("task-rejected", requeue=requeue)
        super().reject(requeue)  # Celery's own has nothing left to do

    def _store_failure(self, exc: BaseException) -> None:
        self.task.backend.mark_as_failure(
            self.id,
            exc,
            request=self._context,
            store_result=self.store_errors,
        )

    def on_failure(
        self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False
    ) -> Any:
        """End a task that raised, was terminated or lost its process."""
        if self.lease_channel is None:
            return super().on_failure(exc_info, send_failed_event, return_ok)
        exc_info = as_lost(exc_info)
        exc = exc_info.exception
        if isinstance(exc, ExceptionWithTraceback):
            exc = exc.exc
        self._lease_dying = isinstance(exc, DEADLY)
        self._lease_timed_out = isinstance(exc, TimeLimitExceeded)
        self._lease_end = end_of(self, exc)
        if isinstance(exc, Reject):
            exc.requeue = exc.requeue and not self._lease_early  # what was acknowledged stays so
            self._lease_refused = None if REJECTIONS_ARE_STORED else exc
        delivery = self._request_dict.get(DELIVERY_HEADER)
        try:
            with continuing(self.id, delivery):
                return super().on_failure(exc_info, send_failed_event, return_ok)
        finally:
            if self._already_cancelled:
                self._end_cancelled()
            elif self._lease_early:
                self.end_lease(*self._lease_end)

    def _end_cancelled(self) -> None:
        """End a task that was taken from its process by a lost connection or a cold shutdown."""
        if self._lease_early and not self._lease_over:
            self._store_failure(WorkerLostError(_KILLED))
            self.end_lease("failed", _KILLED)
        else:
            self.end_lease("requeue")

    def _announce_cancelled(self, *args: Any, **kwargs: Any) -> None:
        super()._announce_cancelled(*args, **kwargs)
        if self._lease_killed:
            self._end_cancelled()

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """End a task that was stopped by its hard time limit; one that runs again has no result."""
        if self.lease_channel is None or soft:
            super().on_timeout(soft, timeout)
            return
        task = self.task
        if task.acks_late and not getattr(task, "acks_on_timeout", task.acks_on_failure_or_timeout):
            state.task_ready(self)
            logger.error("Hard time limit (%ss) exceeded for %s", timeout, self)
            self._lease_dying = True
            self.reject(requeue=True)
            return
        if self._lease_timed_out:
            self._context.errbacks = None  # on_failure called them
        self._lease_end = ("failed", f"hard time limit ({timeout}s) exceeded")
        super().on_timeout(soft, timeout)
        if self._lease_early:
            self.end_lease(*self._lease_end)

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        self._lease_end = ("cancelled", reason)
        super()._announce_revoked(reason, terminated, signum, expired)


def _ending_last(on_success: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``on_success`` so that it ends the row of a task acknowledged early."""

    @functools.wraps(on_success)
    def ending(self: Any, failed__retval__runtime: Any, **kwargs: Any) -> Any:
        if isinstance(failed__retval__runtime, ExceptionInfo):
            # what pools of threads and greenlets make of a SystemExit, and Celery cannot unpack
            return self.on_failure(failed__retval__runtime)
        if failed__retval__runtime[0] is False and self.lease_channel is not None:
            # killed as a greenlet (a trace says 0 or 1): who had it killed announces why, and ends
            state.task_ready(self)
            self._lease_killed = True
            return None
        result = on_success(self, failed__retval__runtime, **kwargs)
        if self._lease_early:
            self.end_lease(*self._lease_end)
        return result

    return ending


@functools.cache
def _combined(base: type) -> type:
    bases = (LeasedRequest,) if issubclass(LeasedRequest, base) else (LeasedRequest, base)
    return type(base.__name__, bases, {"__module__": base.__module__})


def combine(request: Any) -> type:
    """Return the request class ``request`` (a class or its name) with ours mixed in, once."""
    base: type = symbol_by_name(request)
    return base if issubclass(base, LeasedRequest) else _combined(base)  # type: ignore[arg-type]
