"""Collects acknowledgements and commits them in batches, soon, and until they are written.

An acknowledgement is one once its transaction has committed: with the next claim, before the
consumer sleeps, at 64 of them, or after 20 ms. A process killed before that sees the message
delivered again. A locked file or a full disk delays the commit; it never drops it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from . import native
from .deliveries import Deliveries
from .errors import QueueBusyError, QueueDatabaseError, QueueReplacedError
from .log import describe, logger
from .models import Settlement

__all__ = ("Settler",)

_FLUSH_AFTER_S = 0.02
_FLUSH_AT = 64
_FLUSH_WAIT_S = 0.1
_RETRY_AFTER_S = 0.25
_CLOSE_WITHIN_S = 10.0


class Settler:
    """The ends of deliveries that this process still has to write.

    Arguments:
        deliveries: writes them.
        ring: wakes consumers of the queues that got messages back.
    """

    def __init__(self, deliveries: Deliveries, ring: Callable[[Iterable[str]], None]) -> None:
        self._deliveries = deliveries
        self._ring = ring
        self._pending: deque[Settlement] = deque()
        self._lock = native.rlock()  # a garbage collection may come in between
        self._waker: native.Waker | None = None
        self._thread: native.Thread | None = None
        self._awaited = False
        self._closed = False

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, settlement: Settlement) -> None:
        """Queue one end; from any thread."""
        self._pending.append(settlement)
        if len(self._pending) >= _FLUSH_AT:
            self.try_flush()
        elif not self._awaited:
            self._awaited = True
            self._wake_thread()

    def add_later(self, settlements: Iterable[Settlement]) -> None:
        """Queue ends without touching the file; safe inside a garbage collection."""
        self._pending.extend(settlements)
        self._wake_thread()

    def try_flush(self) -> None:
        """Commit what is pending if that is possible now; the flusher goes on trying."""
        if self._deliveries.in_transaction():
            self._wake_thread()  # a rollback of the caller's would take the ends with it
            return
        try:
            self.flush(_FLUSH_WAIT_S)
        except QueueBusyError:
            pass  # a claim or the flusher writes them soon
        except QueueDatabaseError as exc:
            logger.warning("Acknowledgements wait for the file: %s", exc)

    def take(self) -> list[Settlement]:
        """Take what is pending, to commit it with something else; ``put_back`` if that fails."""
        taken = []
        try:
            while True:
                taken.append(self._pending.popleft())
        except IndexError:
            return taken

    def put_back(self, settlements: Sequence[Settlement]) -> None:
        """Queue again what could not be committed."""
        self._pending.extendleft(reversed(settlements))
        if settlements:
            self._wake_thread()

    def flush(self, wait_s: float | None = None) -> list[Settlement]:
        """Commit what is pending now; return the settlements whose lease was lost.

        Arguments:
            wait_s: how long to wait for the write lock; None waits for ``busy_timeout``.

        Raises:
            QueueDatabaseError: nothing was written; what was pending still is.
        """
        settlements = self.take()
        if not settlements:
            return []
        try:
            lost, requeued = self._deliveries.settle(settlements, wait_s)
        except BaseException:
            self.put_back(settlements)
            raise
        self.report(lost)
        self._ring(requeued)
        return lost

    def report(self, lost: Sequence[Settlement]) -> None:
        """Log the ends that came after the lease was lost."""
        for tag, action, *_ in lost:
            logger.warning(
                "Lease lost: %r came too late, the message was, or is, delivered again: %s",
                action,
                describe(None, None, tag),
            )

    # -- the flusher ---------------------------------------------------------------------------

    def _wake_thread(self) -> None:
        if self._thread is None:
            with self._lock:
                if self._thread is None and not self._closed:
                    self._waker = native.Waker()
                    self._thread = native.Thread(self._run, "kombu-sqlite-acks")
                    self._thread.start()
        if self._waker is not None:
            self._waker.set()

    def _run(self) -> None:
        waker = self._waker
        assert waker is not None
        while not self._closed:
            native.select_readable([waker.fileno()], 3600.0)
            waker.clear()
            if self._closed:
                break
            native.select_readable([waker.fileno()], _FLUSH_AFTER_S)  # close() ends the wait
            self._awaited = False
            self.try_flush()
            if self._pending:
                native.sleep(_RETRY_AFTER_S)

    def close(self) -> None:
        """Commit the rest, trying for ten seconds, and stop the thread."""
        self._closed = True
        deadline = time.monotonic() + _CLOSE_WITHIN_S
        while True:
            try:
                self.flush()
                break
            except QueueDatabaseError as exc:
                if time.monotonic() >= deadline or isinstance(exc, QueueReplacedError):
                    logger.error(
                        "%d acknowledgements could not be written (%s); the messages will be "
                        "delivered again.",
                        len(self._pending),
                        exc,
                    )
                    break
                time.sleep(_RETRY_AFTER_S)
        thread, self._thread = self._thread, None
        if thread is not None and self._waker is not None:
            self._waker.set()
            thread.join(5.0)
            self._waker.close()
            self._waker = None
