"""What an error of APSW means for the caller, said in one sentence."""

from __future__ import annotations

import apsw

from .errors import (
    QueueBusyError,
    QueueDatabaseError,
    QueueDiskError,
    QueueLocationError,
    QueueSchemaError,
)
from .location import was_used

__all__ = ("MISREAD", "translate", "used_up")

#: What SQLite says of a file of which it has misread a page.
MISREAD = (apsw.CorruptError, apsw.IOError, apsw.NotADBError)

#: What it says where permissions are missing.
_FORBIDDEN = (apsw.AuthError, apsw.CantOpenError, apsw.PermissionsError, apsw.ReadOnlyError)


def translate(exc: apsw.Error, path: str) -> QueueDatabaseError:
    """Return the error of this package that says what an error of APSW means for the caller."""
    if isinstance(exc, (apsw.BusyError, apsw.LockedError)):
        return QueueBusyError(f"{path!r} stayed locked by another process; try again.")
    if isinstance(exc, apsw.FullError):
        return QueueDiskError(f"The disk of {path!r} is full; make room, then try again.")
    if was_used(path) and isinstance(exc, _FORBIDDEN):
        return QueueDiskError(
            f"{path!r} was in use, but cannot be any more ({exc}); give back its owner or mode, "
            "then try again."
        )
    if was_used(path) and isinstance(exc, (apsw.CorruptError, apsw.NotADBError)):
        return QueueDiskError(
            f"{path!r} was misread, or is damaged ({exc}); check its disk, then try again, or "
            "restore a backup."
        )
    if isinstance(exc, apsw.NotADBError):
        return QueueLocationError(f"{path!r} is not a SQLite database; choose another path.")
    if isinstance(exc, apsw.ReadOnlyError):
        return QueueLocationError(f"{path!r} cannot be written; change its owner or mode.")
    if isinstance(exc, _FORBIDDEN):
        return QueueLocationError(f"{path!r} cannot be opened ({exc}); check path and permissions.")
    if isinstance(exc, apsw.IOError):
        return QueueDiskError(f"The disk of {path!r} failed ({exc}); check it, then try again.")
    if isinstance(exc, apsw.CorruptError):
        return QueueSchemaError(f"{path!r} is damaged ({exc}); restore a backup.")
    return QueueDatabaseError(f"{exc} (in {path!r})")


def used_up(table: str, path: str) -> QueueDatabaseError:
    """Return what SQLite calls a full database where only row ids have come to their end."""
    return QueueSchemaError(
        f"The row ids of table {table!r} in {path!r} are used up: another program wrote a row with "
        "the largest id there is, 9223372036854775807. Delete that row or give it a smaller id, "
        f"then set the seq of {table!r} in sqlite_sequence to the largest id left."
    )
