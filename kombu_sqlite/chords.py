"""Counts the parts of a chord, each once, and hands its body to one publisher.

A part delivered twice is one part. The last one marks the chord due, in the transaction that stores
it; whoever takes the mark publishes the body in the same transaction. So a crash in between leaves
the mark, and any worker that finds it goes on: the body is published once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from .clock import after_text, to_text
from .database import Database
from .results import Payload
from .sql import statement

__all__ = ("Chord", "Chords")


class Chord(NamedTuple):
    """A chord as it stands; ``state`` is ``waiting``, ``due`` or ``done``."""

    state: str
    size: int | None
    added: int
    returned: int
    header: Payload | None
    body: Payload | None


class Chords:
    """The chords of one file."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(self, group_id: str, header: Payload | None, expires_s: float | None) -> None:
        """Begin a run of a chord; what an earlier run of the same group left is forgotten.

        Arguments:
            header: the structure of the header's result, where it is nested.
            expires_s: seconds until an unfinished chord may be forgotten; None keeps it.
        """
        values = self._values(group_id, expires_s)
        with self._database.transaction() as handle:
            handle.run(statement("reset_chord"), values)
            handle.run(statement("delete_chord_parts"), values)
            handle.run(statement("insert_chord"), values)
            handle.run(statement("set_chord_header"), {"group_id": group_id, "header": header})

    def set_size(self, group_id: str, size: int, expires_s: float | None) -> bool:
        """Record how many parts there are; return whether they are all there already."""
        values = self._values(group_id, expires_s)
        with self._database.transaction() as handle:
            handle.run(statement("insert_chord"), values)
            handle.run(statement("set_chord_size"), {"group_id": group_id, "size": size})
            handle.run(statement("make_chord_due"), {**values, "body": None})
            return bool(handle.changes())

    def add_part(self, group_id: str, expires_s: float | None) -> None:
        """Let a chord wait for one part more, published by a running header task."""
        values = self._values(group_id, expires_s)
        with self._database.transaction() as handle:
            handle.run(statement("insert_chord"), values)
            handle.run(statement("add_chord_part"), {"group_id": group_id})

    def return_part(
        self,
        group_id: str,
        task_id: str,
        position: int | None,
        part: Payload,
        body: Payload,
        expires_s: float | None,
    ) -> bool:
        """Take a part in; return whether it was the last, which makes the chord due.

        Arguments:
            position: in the header; None where there is none.
            part: the task's result, for ``parts``.
            body: the signature to publish when the chord is due.
        """
        values = self._values(group_id, expires_s)
        with self._database.joined() as handle:
            handle.run(statement("insert_chord"), values)
            handle.run(
                statement("insert_chord_part"),
                {
                    "group_id": group_id,
                    "task_id": task_id,
                    "position": -1 if position is None else position,
                    "part": part,
                },
            )
            if not handle.changes():
                return False
            handle.run(statement("count_chord_part"), {"group_id": group_id})
            handle.run(statement("make_chord_due"), {**values, "body": body})
            due = bool(handle.changes())
            if not due:
                handle.run(statement("keep_chord_body"), {"group_id": group_id, "body": body})
            return due

    def _values(self, group_id: str, expires_s: float | None) -> dict[str, str | None]:
        expires_at = None if expires_s is None else after_text(expires_s)
        return {"group_id": group_id, "now": to_text(time.time()), "expires_at": expires_at}

    def get(self, group_id: str) -> Chord | None:
        """Return a chord as it stands, or None."""
        with self._database.reading() as handle:
            row = handle.one(statement("get_chord"), {"group_id": group_id})
        return None if row is None else Chord(*row)

    def parts(self, group_id: str) -> list[Payload]:
        """Return the parts of a chord in the header's order."""
        with self._database.reading() as handle:
            rows = handle.all(statement("list_chord_parts"), {"group_id": group_id})
        return [row[0] for row in rows]

    @contextmanager
    def finishing(self, group_id: str, expires_s: float | None) -> Iterator[bool]:
        """Take a due chord's mark together with what the body of the block writes.

        Arguments:
            expires_s: seconds for which a part that comes once more is known as such.

        Yields whether the mark was there to take; otherwise somebody else has finished the chord.
        """
        values = self._values(group_id, expires_s)
        with self._database.transaction() as handle:
            handle.run(statement("finish_chord"), values)
            mine = bool(handle.changes())
            if mine:
                handle.run(statement("delete_chord_parts"), values)
            yield mine

    def list_due(self, for_s: float) -> list[str]:
        """Return the chords that have been due for ``for_s`` seconds: their finisher has died."""
        with self._database.reading() as handle:
            rows = handle.all(statement("list_due_chords"), {"before": after_text(-for_s)})
        return [row[0] for row in rows]
