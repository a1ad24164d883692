"""Starts, ends and extends deliveries: each matches on the delivery tag its claim minted.

An end that was not committed never happened, and the message is delivered again. One whose tag is
no longer the row's changes nothing: whoever lost a lease can never end another's delivery.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .clock import to_text
from .database import Database
from .handles import Handle
from .models import DeliveryTag, Settlement
from .sql import statement
from .stories import tell

__all__ = ("Deliveries", "Start", "end_values")

#: A tag, and whether its message is acknowledged with the start.
Start = tuple[DeliveryTag, bool]

_END = statement("end_delivery")
_OPEN = frozenset({"queued", "processing"})
_REQUEUING = frozenset({"requeue", "release", "died"})


class Deliveries:
    """What happens to the leased messages of one file."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def in_transaction(self) -> bool:
        """Return whether this thread, or greenlet, is inside a transaction of somebody else's."""
        return self._database.handle().entered() > 0

    def start(self, starts: Iterable[Start], wait_s: float | None = None) -> set[DeliveryTag]:
        """Record that executions begin, in one transaction; see ``start_within``.

        Arguments:
            wait_s: how long to wait for the write lock; None waits for ``busy_timeout``.

        Raises:
            QueueBusyError: nothing was recorded within ``wait_s``; try again.
        """
        with self._database.transaction(wait_s) as handle:
            return self.start_within(handle, starts)

    def start_within(self, handle: Handle, starts: Iterable[Start]) -> set[DeliveryTag]:
        """Record that executions begin; return the tags that may run, the others were lost.

        Arguments:
            starts: tags, each with whether the message is acknowledged with that, and so never
                run again.
        """
        now = to_text(time.time())
        started = set()
        for tag, early in starts:
            values = {"id": tag.row_id, "delivery_no": tag.delivery_no, "now": now, "early": early}
            if tag.transient:
                mine = handle.one(statement("get_transient_lease"), values) is not None
            else:
                handle.run(statement("start_delivery"), values)
                mine = bool(handle.changes())
            if mine:
                started.add(tag)
        return started

    def settle(
        self, settlements: Sequence[Settlement], wait_s: float | None = None
    ) -> tuple[list[Settlement], set[str]]:
        """End deliveries in one transaction; see ``settle_within``."""
        with self._database.transaction(wait_s) as handle:
            return self.settle_within(handle, settlements)

    def settle_within(
        self, handle: Handle, settlements: Sequence[Settlement]
    ) -> tuple[list[Settlement], set[str]]:
        """End deliveries, each matched by its tag, within ``handle``'s transaction.

        Returns:
            The settlements whose lease was lost (their messages belong to others), and the queues
            that have messages again.
        """
        now = to_text(time.time())
        lost: list[Settlement] = []
        requeued: set[str] = set()
        for settlement in settlements:
            tag, action, error, quiet = settlement
            if action in _REQUEUING:
                done = self._put_back(handle, tag, action, now, requeued)
            elif tag.transient:
                handle.run(
                    statement("end_transient"), {"id": tag.row_id, "delivery_no": tag.delivery_no}
                )
                done = True  # its queue may be gone, and what it held with it
            else:
                handle.run(_END, end_values(tag, action, error, now))
                done = bool(handle.changes())
            if not done and not quiet and self._is_lost(handle, tag):
                lost.append(settlement)
        return lost, requeued

    def _put_back(
        self, handle: Handle, tag: DeliveryTag, action: str, now: str, requeued: set[str]
    ) -> bool:
        """Queue a delivery again; return whether its tag was still valid."""
        values = {"id": tag.row_id, "delivery_no": tag.delivery_no, "now": now}
        if tag.transient:
            rows = handle.all(statement("requeue_transient"), values)
        elif action == "died":
            handle.run(statement("exhaust_delivery"), values)
            if handle.changes():
                return True
            rows = handle.all(statement("requeue_died"), values)
            if rows:
                told = self._database.options.task_log
                tell(handle, told, tag.row_id, "warning", "its process died while it ran")
        else:
            undo = 1 if action == "release" else 0
            rows = handle.all(statement("requeue_delivery"), {**values, "undo": undo})
        requeued.update(row[0] for row in rows)
        return bool(rows)

    @contextmanager
    def ending(self, tag: DeliveryTag, status: str, error: str | None = None) -> Iterator[bool]:
        """End one delivery together with what the body writes, in one transaction.

        Yields whether the delivery may end so: it was still valid, or has ended so already (whoever
        ended it may not have written the result). Otherwise the body must write nothing.

        Raises:
            QueueBusyError, QueueDiskError: nothing was written, by the body neither.
        """
        with self._database.transaction() as handle:
            handle.run(_END, end_values(tag, status, error, to_text(time.time())))
            mine = bool(handle.changes())
            if not mine:
                row = handle.one(statement("get_delivery_state"), {"id": tag.row_id})
                mine = row is not None and row[:2] == (tag.delivery_no, status)
            yield mine

    @contextmanager
    def continuing(self, tag: DeliveryTag, reason: str) -> Iterator[bool]:
        """Tell a row why it runs again, together with what the block writes.

        Yields whether the next run is still to come; otherwise, if it has begun or was cancelled,
        the block must write nothing.
        """
        with self._database.transaction() as handle:
            tell(handle, self._database.options.task_log, tag.row_id, "info", reason)
            row = handle.one(statement("get_delivery_state"), {"id": tag.row_id})
            yield (row is not None and row[0] == tag.delivery_no and row[1] in _OPEN)

    def is_running(self, tag: DeliveryTag) -> bool:
        """Return whether a delivery is still its holder's and has not ended."""
        with self._database.reading() as handle:
            row = handle.one(statement("get_delivery_state"), {"id": tag.row_id})
        return row is not None and row[:2] == (tag.delivery_no, "processing")

    def _is_lost(self, handle: Handle, tag: DeliveryTag) -> bool:
        """Return whether another delivery took over; a row that has ended by itself is no loss."""
        if tag.transient:
            return False
        row = handle.one(statement("get_delivery_state"), {"id": tag.row_id})
        return row is not None and (row[0] != tag.delivery_no or row[1] in ("queued", "processing"))

    def renew(self, tag: DeliveryTag, lease_s: float) -> bool:
        """Extend the lease of one delivery; return False when it was lost."""
        now_s = time.time()
        with self._database.transaction() as handle:
            if tag.transient:
                values = {"id": tag.row_id, "delivery_no": tag.delivery_no}
                return handle.one(statement("get_transient_lease"), values) is not None
            handle.run(
                statement("renew_delivery"),
                {
                    "id": tag.row_id,
                    "delivery_no": tag.delivery_no,
                    "now": to_text(now_s),
                    "lease_until": to_text(now_s + lease_s),
                },
            )
            return bool(handle.changes())


def end_values(tag: DeliveryTag, status: str, error: str | None, now: str) -> dict[str, Any]:
    """Return the parameters of the statement that ends a delivery."""
    return {
        "id": tag.row_id,
        "delivery_no": tag.delivery_no,
        "status": status,
        "error": error,
        "now": now,
    }
