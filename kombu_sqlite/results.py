"""What a result backend keeps in the file: results of tasks and groups, without Celery.

A result is in the file, and whoever waits for it rung, once the transaction that stores it has
committed. Stored inside another transaction, it commits with that one.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from .bells import BellBoard
from .clock import after_text, to_text
from .database import Database
from .foreign import readable
from .sql import statement

__all__ = ("Results",)

_CLEAN_AT_ONCE = 500
_DAMAGED = "FAILURE"

#: A result as its serializer wrote it.
Payload = str | bytes


class Results:
    """The results in one file."""

    def __init__(self, database: Database, board: BellBoard) -> None:
        self._database = database
        self._board = board

    def store(self, task_id: str, status: str, meta: Payload, expires_s: float | None) -> bool:
        """Store a task's state; return False where a success stands there already, and stays.

        Arguments:
            meta: what ``get`` is to return.
            expires_s: seconds until it may be forgotten; None keeps it.
        """
        values = {
            "task_id": task_id,
            "status": status,
            "meta": meta,
            "now": to_text(time.time()),
            "expires_at": None if expires_s is None else after_text(expires_s),
        }
        with self._database.joined() as handle:
            handle.run(statement("delete_unsuccessful_result"), values)
            handle.run(statement("insert_result"), values)
            stored = bool(handle.changes())
            if stored:
                handle.after_commit.append(lambda: self._board.ring_waiter(task_id))
        return stored

    def get(self, task_id: str) -> tuple[str, Payload] | None:
        """Return a task's state and what was stored with it; None when nothing was, or expired."""
        for _, _, status, meta in self.get_many([task_id]):
            return status, meta
        return None

    def get_many(self, task_ids: Iterable[str]) -> Iterator[tuple[str, int, str, Payload]]:
        """Yield id, sequence number, state and what was stored, of tasks that have a result.

        One whose text is not UTF-8 comes as bytes, and failed: whoever waits shall find out.
        """
        now = to_text(time.time())
        for task_id in task_ids:
            values = {"task_id": task_id, "now": now}
            with self._database.reading() as handle:
                try:
                    row = handle.one(statement("get_result"), values)
                except UnicodeDecodeError:
                    row = handle.one(statement("get_result_as_bytes"), values)
                    row = row and (row[0], _DAMAGED, row[1])
            if row is not None:
                yield (task_id, *row)

    def since(self, seq: int) -> list[tuple[int, str, str]]:
        """Return sequence number, task id and state of what was stored after ``seq``."""
        with self._database.reading() as handle:
            rows = handle.all(statement("list_results_since"), {"seq": seq})
        return [(seq, readable(task_id), readable(status)) for seq, task_id, status in rows]

    def last_seq(self) -> int:
        """Return the sequence number of the newest result."""
        with self._database.reading() as handle:
            seq: int = handle.one(statement("get_last_seq"))[0]
        return seq

    def forget(self, task_id: str) -> None:
        """Forget a task's result: its state is unknown again."""
        with self._database.transaction() as handle:
            handle.run(statement("delete_result"), {"task_id": task_id})

    def store_group(self, group_id: str, meta: Payload, expires_s: float | None) -> None:
        """Store a group's result."""
        expires_at = None if expires_s is None else after_text(expires_s)
        values = {"group_id": group_id, "meta": meta, "expires_at": expires_at}
        with self._database.transaction() as handle:
            handle.run(statement("upsert_group"), values)

    def get_group(self, group_id: str) -> Payload | None:
        """Return what was stored for a group, or None."""
        values = {"group_id": group_id, "now": to_text(time.time())}
        with self._database.reading() as handle:
            row = handle.one(statement("get_group"), values)
        return None if row is None else row[0]

    def forget_group(self, group_id: str) -> None:
        """Forget a group's result."""
        with self._database.transaction() as handle:
            handle.run(statement("delete_group"), {"group_id": group_id})

    def delete_expired(self) -> int:
        """Forget what has expired, a bounded number of rows a transaction; return how many."""
        return sum(
            self._delete_all(name)
            for name in ("delete_expired_results", "delete_expired_groups", "delete_expired_chords")
        )

    def _delete_all(self, name: str) -> int:
        values = {"now": to_text(time.time()), "limit": _CLEAN_AT_ONCE}
        deleted = 0
        while True:
            with self._database.reading() as handle:
                if handle.one(statement(f"any_{name}"), values) is None:
                    return deleted  # idle checks are reads
            with self._database.transaction() as handle:
                rows = handle.all(statement(name), values)
                deleted += handle.changes()
                for (group_id,) in rows:
                    handle.run(statement("delete_chord_parts"), {"group_id": group_id})
