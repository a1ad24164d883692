"""Ends that the broker made and that still owe a result: expired, exhausted, cancelled, lost.

The file cannot know the application: it marks such a row in the transaction that ends it, and a
worker of the application stores the result. Until then the mark stays, whoever dies.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from .clock import to_text
from .database import Database
from .foreign import readable
from .models import Delivery, DeliveryTag
from .sql import statement

__all__ = ("OwedEnd", "OwedEnds")


class OwedEnd(NamedTuple):
    """A row that has ended without a result.

    Arguments:
        follows: of a duplicate, the row whose result it gets.
        first_task_id: that row's task id; None when the row is gone.
    """

    delivery: Delivery
    status: str
    reason: str
    follows: int | None
    first_task_id: str | None


class OwedEnds:
    """What is owed in one file."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, after: int, limit: int) -> list[int]:
        """Return up to ``limit`` ids, above ``after``, of rows that owe a result."""
        with self._database.reading() as handle:
            rows = handle.all(statement("list_owed"), {"after": after, "limit": limit})
        return [row[0] for row in rows]

    def get(self, row_id: int) -> OwedEnd | None:
        """Return one of them; None when it owes nothing any more."""
        with self._database.reading() as handle:
            row = handle.one(statement("get_owed"), {"id": row_id})
        if row is None:
            return None
        type_, queue, task_id, status, error, payload, headers, properties = row[:8]
        number, priority, follows, first = row[8:]
        delivery = Delivery(
            DeliveryTag(row_id, number),
            readable(queue),
            readable(type_),
            priority,
            payload,
            _text(headers),
            _text(properties),
            _text(task_id),
        )
        return OwedEnd(delivery, status, _text(error) or "", follows, _text(first))

    @contextmanager
    def paying(self, row_id: int) -> Iterator[bool]:
        """Take a row's mark together with what the block writes to this file.

        Yields whether the mark was there; otherwise another worker has stored the result.
        """
        with self._database.transaction() as handle:
            handle.run(statement("pay_owed"), {"id": row_id})
            yield bool(handle.changes())

    def end_followers(self, limit: int) -> int:
        """End up to ``limit`` duplicates whose first task has ended; what they owe is marked."""
        with self._database.reading() as handle:
            rows = handle.all(statement("list_followers"), {"limit": limit})
        if rows:
            now = to_text(time.time())
            with self._database.transaction() as handle:
                for (row_id,) in rows:
                    handle.run(statement("end_follower"), {"id": row_id, "now": now})
        return len(rows)


def _text(value: bytes | None) -> str | None:
    return None if value is None else readable(value)
