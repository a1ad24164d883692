"""Task ids and stamps that were revoked before they had a row; each claim asks.

A revocation is in the file, so it outlives every worker. It ends with its expiry.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .clock import after_text, to_text
from .database import Database
from .handles import Handle
from .sql import statement

__all__ = ("Revocations", "Stamps", "carries")

#: Stamp header -> revoked values, as text.
Stamps = Mapping[str, Iterable[str]]

_HEADERS, _TASK_ID = 6, 8  # columns of find_ready


class Revocations:
    """What is revoked in one file beside its rows."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, task_ids: Iterable[str], stamps: Stamps, expires_s: float) -> None:
        """Revoke task ids and stamps for ``expires_s`` seconds, in one transaction."""
        expires_at = after_text(expires_s)
        entries = [("", task_id) for task_id in task_ids]
        entries += [(header, value) for header, values in stamps.items() for value in values]
        with self._database.transaction() as handle:
            handle.run(statement("delete_expired_revocations"), {"now": to_text(time.time())})
            for header, value in entries:
                handle.run(
                    statement("upsert_revocation"),
                    {"header": header, "value": value, "expires_at": expires_at},
                )

    def among(self, handle: Handle, rows: Sequence[Any], now: str) -> frozenset[int]:
        """Return the ids of those of ``rows``, as ``find_ready`` gives them, that are revoked."""
        stamps: dict[str, set[str]] = {}
        for header, value in handle.all(statement("list_revoked_stamps"), {"now": now}):
            stamps.setdefault(header, set()).add(value)
        return frozenset(row[0] for row in rows if self._is_revoked(handle, row, stamps, now))

    def _is_revoked(self, handle: Handle, row: Any, stamps: dict[str, set[str]], now: str) -> bool:
        values = {"task_id": row[_TASK_ID], "now": now}
        if row[_TASK_ID] and handle.one(statement("get_revocation"), values) is not None:
            return True
        return bool(stamps) and carries(row[_HEADERS], stamps)


def carries(headers: str | bytes | None, stamps: Stamps) -> bool:
    """Return whether a message's headers carry one of ``stamps``."""
    try:
        found = json.loads(headers or "{}")
    except (ValueError, RecursionError):
        return False
    if not isinstance(found, dict) or not isinstance(found.get("stamps"), dict):
        return False
    for header, values in stamps.items():
        mine = found["stamps"].get(header)
        listed = mine if isinstance(mine, list) else [mine]
        if mine is not None and {str(value) for value in listed} & set(values):
            return True
    return False
