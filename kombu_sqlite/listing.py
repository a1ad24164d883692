"""Which rows a listing shows, in which order."""

from __future__ import annotations

from .foreign import readable
from .handles import Handle
from .sql import statement

__all__ = ("find_tasks", "find_waiting")

_HIGHEST_ID = 2**63 - 1
_LOWEST_ID = -(2**63)

#: So many rows are read and sorted in about 20 ms.
_FEW = 10_000


def find_tasks(
    handle: Handle,
    *,
    status: str | None,
    type: str | None,
    queue: str | None,
    format: str | None,
    before_id: int | None,
    limit: int,
) -> list[int]:
    """Return the ids of rows that match every filter given, newest first.

    Arguments:
        before_id: only lower ids.
        limit: at most so many; none if it is not positive.
    """
    if limit < 1:
        return []
    values = {
        "status": status,
        "type": type,
        "queue": queue,
        "newest": _HIGHEST_ID if before_id is None else before_id - 1,
        "limit": limit,
    }
    name = "list_tasks_in_groups"
    if format is not None:
        name, values["format"] = "list_tasks_of_format", format
    elif status is type is queue is None:
        name = "list_tasks"
    return [row[0] for row in handle.all(statement(name), values)]


def find_waiting(
    handle: Handle, *, type: str | None, queue: str | None, after_id: int | None, limit: int
) -> list[int]:
    """Return the ids of rows that wait for their time, the next to fall due first.

    Arguments:
        after_id: only rows that come after this one; none do once its row is gone.
        limit: at most so many; none if it is not positive.
    """
    due = ""
    if after_id is not None:
        found = handle.one(statement("get_due_time"), {"id": after_id})
        if found is None:
            return []
        due = readable(found[0])
    if limit < 1:
        return []
    after = _LOWEST_ID if after_id is None else after_id
    values = {"type": type, "queue": queue, "due": due, "after": after, "limit": limit}
    name = "list_waiting"
    if handle.one(statement("count_queued_in_groups"), values)[0] <= _FEW:
        name = "list_waiting_in_groups"  # among a million others the next may be far away
    return [row[0] for row in handle.all(statement(name), values)]
