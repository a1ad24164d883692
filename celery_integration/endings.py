"""Tells how a row ends for what its task has raised."""

from __future__ import annotations

from typing import Any

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from billiard.exceptions import Terminated
from celery import VERSION, states
from celery.exceptions import Ignore, Reject, Retry, TimeLimitExceeded, WorkerLostError
from celery.utils.log import get_logger

__all__ = ("DEADLY", "REJECTIONS_ARE_STORED", "End", "as_lost", "end_of", "error_of")

logger = get_logger(__name__)

#: A status and why.
End = tuple[str, str | None]

#: What an execution raises that took its process with it.
DEADLY = (WorkerLostError, TimeLimitExceeded, SystemExit, KeyboardInterrupt)

#: Whether Celery itself stores a failure for a task that rejects its message for good, and takes
#: an exit for a lost process; 5.6 hands the exit to the backend, which cannot encode it.
REJECTIONS_ARE_STORED = EXITS_ARE_LOSSES = VERSION[:2] >= (5, 7)

_ENDED_AS = {states.FAILURE: "failed", states.REVOKED: "cancelled"}


def end_of(request: Any, exc: BaseException) -> End:
    """Return the status and error a row ends with for what its task raised; raises nothing."""
    if isinstance(exc, Retry):
        return "completed", None  # unless it continues, which it does in the same queue
    if isinstance(exc, Ignore):
        return _end_ignored(request, exc)
    if isinstance(exc, Terminated):
        return "cancelled", "terminated"
    if isinstance(exc, DEADLY) and not isinstance(exc, TimeLimitExceeded):
        return "failed", f"worker lost: {exc}"
    return "failed", error_of(exc)


def error_of(exc: BaseException) -> str:
    """Return what a failed row says of the exception."""
    return f"rejected: {exc.reason}" if isinstance(exc, Reject) else repr(exc)


def as_lost(exc_info: Any) -> Any:
    """Return an exit as the loss of a process that it is; anything else as it came."""
    exc = exc_info.exception
    if isinstance(exc, ExceptionWithTraceback):
        exc = exc.exc
    if EXITS_ARE_LOSSES or not isinstance(exc, (SystemExit, KeyboardInterrupt)):
        return exc_info
    try:
        raise WorkerLostError(f"Worker exited prematurely: {exc!r}.")
    except WorkerLostError:
        return ExceptionInfo()


def _end_ignored(request: Any, exc: Ignore) -> End:
    """Follow the state the task has stored itself, else completed."""
    if str(exc).startswith("Replaced"):
        return "completed", "replaced"  # whatever the replacement has come to meanwhile
    if request.ignore_result:
        return "completed", None
    try:
        stored = request.task.backend.get_state(request.id)
    except NotImplementedError:
        return "completed", None  # results are disabled
    except Exception as unread:  # noqa: BLE001 - whatever a backend holds, the row must end
        logger.warning("The state of ignored task %s cannot be read: %r", request.id, unread)
        return "completed", None
    return _ENDED_AS.get(stored, "completed"), None
