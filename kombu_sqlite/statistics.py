"""What the queue does: exact counts, and measures over the rows that ended last."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .clock import parse_time, to_text
from .foreign import readable
from .handles import Handle
from .models import STATUSES, QueueStats, WorkerState
from .rows import as_row
from .sql import statement

__all__ = (
    "Percentiles",
    "Statistics",
    "WindowStatistics",
    "count_tasks",
    "measure",
    "read_worker_states",
)

#: A window that has only just begun would otherwise divide by almost nothing.
_SHORTEST_SPAN_S = 1.0


@dataclass(frozen=True)
class Percentiles:
    """Durations in seconds that half, 95 and 99 of a hundred rows do not exceed.

    Each is one that was measured (the nearest-rank method); None when nothing was.
    """

    p50: float | None = None
    p95: float | None = None
    p99: float | None = None

    @classmethod
    def of(cls, durations_s: Iterable[float]) -> Percentiles:
        """Return the percentiles of some durations, in any order."""
        ordered = sorted(durations_s)
        if not ordered:
            return cls()
        ranks = (math.ceil(len(ordered) * percent / 100) - 1 for percent in (50, 95, 99))
        # times are in milliseconds, though not their difference in binary; none is negative,
        # whatever a clock that steps makes of it
        return cls(*(max(0.0, round(ordered[rank], 3)) for rank in ranks))


@dataclass(frozen=True)
class WindowStatistics:
    """Measures over the rows that ended last.

    Attributes:
        ended: rows of the chosen queue and type in the window.
        seconds: how long the window is: the stated one, or since the first of its rows ended.
        throughput: rows ended per second.
        success_rate: completed among those completed or failed; None when there is neither.
        retry_rate: rows that ran more than once among those ended; None when none has.
        wait_seconds: from when a row was there and due until it began.
        run_seconds: from when it began until it ended.
    """

    ended: int = 0
    seconds: float = 0.0
    throughput: float = 0.0
    success_rate: float | None = None
    retry_rate: float | None = None
    wait_seconds: Percentiles = field(default_factory=Percentiles)
    run_seconds: Percentiles = field(default_factory=Percentiles)


@dataclass(frozen=True)
class Statistics(QueueStats):
    """The counts, all of one moment, and what stands beside them.

    Attributes:
        queue, type: what it was asked for; None means all.
        depth_by_queue, depth_by_type: name -> state -> tasks. Each of the five states has a
            number; states that other programs invented are counted as ``unknown``.
        window: measures over the rows that ended last.
        active_workers: those with a sign of life within their visibility timeout.
        stale_workers: those without one that have not been found gone yet. Workers serve any
            queue: a filter does not change these two.
    """

    queue: str | None = None
    type: str | None = None
    depth_by_queue: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    depth_by_type: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    window: WindowStatistics = field(default_factory=WindowStatistics)
    active_workers: int = 0
    stale_workers: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-compatible values, records within as dictionaries."""
        return asdict(self)


def count_tasks(handle: Handle, queue: str | None, type: str | None) -> QueueStats:
    """Return how many tasks are in which state."""
    values = {"queue": queue, "type": type}
    counts = dict(handle.all(statement("count_by_status"), values))
    return QueueStats.of(counts, _oldest_age_s(handle, values))


def measure(
    handle: Handle, queue: str | None, type: str | None, window: int, window_s: float | None
) -> Statistics:
    """Return the statistics; the caller sees to it that all statements see one moment.

    Raises:
        ValueError: a window is not positive.
    """
    if window < 1 or (window_s is not None and not window_s > 0):
        raise ValueError("A window is a positive number of rows or seconds.")
    values = {"queue": queue, "type": type}
    groups = [
        (readable(queue), readable(type), status, tasks)
        for queue, type, status, tasks in handle.all(statement("count_groups"), values)
    ]
    monitors = _monitors(handle)
    workers = Counter(
        status
        for worker, status in handle.all(statement("list_worker_statuses"))
        if worker not in monitors
    )
    totals: Counter[str] = Counter()
    for _, _, status, tasks in groups:
        totals[status] += tasks
    counts = QueueStats.of(totals, _oldest_age_s(handle, values))
    return Statistics(
        **vars(counts),
        queue=queue,
        type=type,
        depth_by_queue=_depths(groups, 0),
        depth_by_type=_depths(groups, 1),
        window=_measure_window(handle, values, window, window_s),
        active_workers=workers["active"],
        stale_workers=workers["stale"],
    )


def read_worker_states(handle: Handle) -> list[WorkerState]:
    """Return every worker with its state."""
    assert handle.connection is not None
    monitors = _monitors(handle)
    cursor = handle.connection.cursor()
    cursor.row_trace = as_row
    return [
        WorkerState.from_dict(
            {
                name: readable(value) if isinstance(value, bytes) else value
                for name, value in dict(row).items()
            }
        )
        for row in cursor.execute(statement("list_worker_states"))
        if row["worker_id"] not in monitors
    ]


def _monitors(handle: Handle) -> set[bytes]:
    return {row[0] for row in handle.all(statement("list_monitors"))}


def _oldest_age_s(handle: Handle, values: Mapping[str, Any]) -> float | None:
    oldest = parse_time(readable(handle.one(statement("oldest_queued"), dict(values))[0]))
    return None if oldest is None else max(0.0, time.time() - oldest.timestamp())


def _depths(groups: Sequence[Sequence[Any]], column: int) -> dict[str, dict[str, int]]:
    names = sorted({group[column] for group in groups})
    depths = {name: dict.fromkeys(STATUSES, 0) for name in names}
    for group in groups:
        depth, status = depths[group[column]], group[2]
        depth[status] = depth.get(status, 0) + group[3]
    return depths


def _measure_window(
    handle: Handle, values: Mapping[str, Any], window: int, window_s: float | None
) -> WindowStatistics:
    now = time.time()
    since = "" if window_s is None else to_text(max(0.0, now - window_s))
    rows = handle.all(statement("sample_ended"), {**values, "since": since, "window": window})
    if window_s is not None and len(rows) < window:
        span_s = window_s
    else:  # as many rows as may be looked at: they reach back less far
        first_s = next((row[4] for row in reversed(rows) if row[4] is not None), None)
        span_s = 0.0 if first_s is None else max(_SHORTEST_SPAN_S, now - first_s)
    sample = [row for row in rows if row[0] is not None]
    states = Counter(row[0] for row in sample)
    ended, ran = len(sample), states["completed"] + states["failed"]
    return WindowStatistics(
        ended=ended,
        seconds=span_s,
        throughput=ended / span_s if span_s else 0.0,
        success_rate=states["completed"] / ran if ran else None,
        retry_rate=sum(row[1] for row in sample) / ended if ended else None,
        wait_seconds=Percentiles.of(_durations_s(sample, 2, 3)),
        run_seconds=Percentiles.of(_durations_s(sample, 3, 4)),
    )


def _durations_s(sample: Iterable[Sequence[Any]], begin: int, end: int) -> list[float]:
    """Return the durations of which both ends are known."""
    return [
        row[end] - row[begin] for row in sample if row[end] is not None and row[begin] is not None
    ]
