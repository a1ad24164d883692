"""One tree of errors; each docstring tells the caller what to do."""

from __future__ import annotations

__all__ = (
    "DuplicateTask",
    "IdempotencyConflict",
    "LeaseLost",
    "QueueBusyError",
    "QueueDatabaseError",
    "QueueDiskError",
    "QueueLocationError",
    "QueueNotReadyError",
    "QueueOptionError",
    "QueueReplacedError",
    "QueueSchemaError",
    "QueueUnavailableError",
    "SessionLost",
)


class QueueDatabaseError(Exception):
    """Base of every error of this package; catch it to catch them all."""


class QueueOptionError(QueueDatabaseError, ValueError):
    """An option of the URL or of ``broker_transport_options`` is unknown or ill-typed: mend it."""


class QueueLocationError(QueueDatabaseError):
    """The path cannot hold a queue; the message says what to change. Retrying does not help."""


class QueueUnavailableError(QueueLocationError):
    """The path cannot hold a queue, and the connection has others: Kombu goes on to the next."""


class QueueSchemaError(QueueDatabaseError):
    """The file's schema is newer than this code, or damaged: upgrade kombu-sqlite or the file."""


class QueueBusyError(QueueDatabaseError):
    """Another process held the write lock longer than ``busy_timeout``; nothing was written.

    Try again; Kombu does so by itself.
    """


class QueueNotReadyError(QueueBusyError):
    """The file stayed locked while it was being opened; Kombu connects again by itself."""


class QueueDiskError(QueueDatabaseError):
    """The disk is full or failed, or a file that was in use can no longer be; nothing was written.

    Make room, or mend what the message names, then try again; Kombu does so by itself.
    """


class QueueReplacedError(QueueDatabaseError):
    """The file was moved, deleted or replaced while open; connect again to use the new one."""


class SessionLost(QueueDatabaseError):
    """This process was silent longer than its visibility timeout; what it held went to others.

    Connect again to go on under a new name.
    """


class LeaseLost(QueueDatabaseError):
    """The delivery belongs to somebody else by now; its holder can no longer end or extend it.

    Stop working on it: the message is, or was, delivered again under a newer delivery tag.
    """


class IdempotencyConflict(QueueDatabaseError):
    """The idempotency key belongs to a task of another name; nothing was written.

    Use another key; the message names the holder.
    """


class DuplicateTask(QueueDatabaseError):
    """A task with this idempotency key is in the file already; nothing was written.

    Arguments:
        task_id: Celery's id of the first one; wait for its result.
        row_id: its row.
    """

    def __init__(self, key: str, task_id: str | None, row_id: int) -> None:
        super().__init__(f"Idempotency key {key!r} belongs to row {row_id}, task {task_id}.")
        self.task_id = task_id
        self.row_id = row_id
