"""Idempotency keys: of several publishes with one key, one becomes a task.

A look and an insert stand in one IMMEDIATE transaction, so of concurrent publishers one is first
and the others see its row.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from .clock import after_text
from .errors import IdempotencyConflict
from .foreign import readable
from .handles import Handle
from .log import logger
from .models import IdempotencyKey
from .sql import statement

__all__ = ("SCOPES", "Holder", "find_holder", "move_key", "reclaim_key", "take_key")

#: How long a key holds, beside a number of seconds.
SCOPES = ("row", "end")


class Holder(NamedTuple):
    """The row that a key belongs to."""

    row_id: int
    task_id: str | None


def find_holder(handle: Handle, key: str, type: str, payload: Any, now: str) -> Holder | None:
    """Return who holds ``key`` now; None when it is free, and then no row has it any more.

    Atomic with ``handle``'s transaction.

    Arguments:
        payload: of the new message; a warning tells where its arguments differ. None tells nothing.

    Raises:
        IdempotencyConflict: it belongs to a task of another name.
    """
    row = handle.one(statement("get_key_holder"), {"key": key})
    if row is None:
        return None
    row_id, raw_type, raw_task_id, status, holder_payload, scope, expires_at = row
    holder_type = readable(raw_type)
    task_id = None if raw_task_id is None else readable(raw_task_id)
    ended = status not in (b"queued", b"processing")
    if (scope == "end" and ended) or (expires_at is not None and expires_at <= now):
        handle.run(statement("free_row_key"), {"id": row_id})
        return None
    if holder_type != type:
        raise IdempotencyConflict(
            f"Idempotency key {key!r} belongs to task {holder_type!r} (row {row_id}, task id "
            f"{task_id}), not to {type!r}; use another key."
        )
    if payload is not None and _arguments(holder_payload) != _arguments(payload):
        logger.warning(
            "Idempotency key %r of task %s was published again with other arguments; the first "
            "ones count: row=%s task_id=%s",
            key,
            type,
            row_id,
            task_id,
        )
    return Holder(row_id, task_id)


def _arguments(payload: Any) -> Any:
    """Return what of a payload counts as arguments; a protocol 2 body also holds callbacks."""
    try:
        found = json.loads(payload)
    except (TypeError, ValueError, RecursionError):
        return payload.encode() if isinstance(payload, str) else payload
    return found[:2] if isinstance(found, list) else found


def take_key(
    handle: Handle, key: IdempotencyKey, type: str, task_id: str | None, row_id: int
) -> None:
    """Give a free key to a row, on the terms of its scope; seconds count from now."""
    handle.run(statement("set_row_key"), {"id": row_id, "key": key.text})
    seconds = None if key.scope in SCOPES else float(key.scope)
    handle.run(
        statement("upsert_key"),
        {
            "key": key.text,
            "type": type,
            "id": row_id,
            "task_id": task_id,
            "scope": "seconds" if seconds is not None else key.scope,
            "expires_at": None if seconds is None else after_text(seconds),
        },
    )


def move_key(handle: Handle, key: str, row_id: int, to: int) -> None:
    """Let another row hold a row's key, on the same terms."""
    handle.run(statement("free_row_key"), {"id": row_id})
    handle.run(statement("set_row_key"), {"id": to, "key": key})
    handle.run(statement("move_key"), {"id": row_id, "to": to, "key": key})


def reclaim_key(
    handle: Handle, row_id: int, type: str, task_id: str | None, headers: bytes | None, now: str
) -> None:
    """Give a row that is put back the key of its message again, if it has lost it.

    Raises:
        IdempotencyConflict: the key belongs to another row by now.
    """
    try:
        found = json.loads(headers or b"{}")
        key = IdempotencyKey(found["idempotency_key"], str(found.get("idempotency_scope", "row")))
    except (ValueError, KeyError, TypeError, AttributeError):
        return  # it has none
    holder = find_holder(handle, key.text, type, None, now)
    if holder is None:
        take_key(handle, key, type, task_id, row_id)
    elif holder.row_id != row_id:
        raise IdempotencyConflict(
            f"Idempotency key {key.text!r} of row {row_id} belongs to row {holder.row_id} (task id "
            f"{holder.task_id}) by now; end that one first."
        )
