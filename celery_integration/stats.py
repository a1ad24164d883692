"""Read-only statistics of an app's queue."""

from __future__ import annotations

from typing import Any

from kombu_sqlite import Percentiles, QueueDatabase, Statistics, WindowStatistics

from .queue_file import open_queue

__all__ = ("Percentiles", "Statistics", "WindowStatistics", "statistics")


def statistics(
    database_or_app: Any,
    *,
    queue: str | None = None,
    type: str | None = None,
    window: int = 10_000,
    window_s: float | None = None,
) -> Statistics:
    """Return counts, depths, rates and durations, all of one moment of the file.

    It writes nothing. See ``QueueDatabase.statistics`` for the arguments.

    Arguments:
        database_or_app: a ``QueueDatabase``, or a Celery app, whose file is opened and closed.

    Raises:
        QueueLocationError: the app's broker is no queue file.
        ValueError: a window is not positive.
    """
    if isinstance(database_or_app, QueueDatabase):
        return database_or_app.statistics(queue=queue, type=type, window=window, window_s=window_s)
    with open_queue(database_or_app) as database:
        return database.statistics(queue=queue, type=type, window=window, window_s=window_s)
