"""The duties of the elected process that only keep the file in order; none of them is urgent.

Each step is its own short transaction; a crash between two leaves nothing half done.
"""

from __future__ import annotations

import time
from typing import Any

import apsw

from .checkpoints import FRAME_BYTES, restart
from .clock import now_text, to_text
from .database import Database
from .foreign import readable
from .handles import Handle
from .log import describe, logger
from .options import Options
from .results import Results
from .routing import requirements
from .sql import statement
from .topology import TopologyStore

__all__ = ("Housekeeping",)

_GONE_WORKERS_KEPT_S = 86400.0
_LARGE_LOG_BYTES = 8 * 2**20
_RESTART_WAIT_MS = 50

#: Rows per transaction, so that nobody waits long for the write lock.
BATCH = 500


class Housekeeping:
    """Expires, mends, prunes and checkpoints one file."""

    def __init__(
        self, database: Database, topology: TopologyStore, options: Options, results: Results
    ) -> None:
        self._database = database
        self._topology = topology
        self._options = options
        self._results = results

    def expire(self) -> None:
        """Cancel queued messages whose time is over; delete transient ones, and results."""
        for name in ("cancel_expired", "delete_expired_transient"):
            while self._write_batch(name) == BATCH:
                pass
        self._results.delete_expired()

    def _write_batch(self, name: str) -> int:
        values = {"now": now_text(), "limit": BATCH}
        with self._database.reading() as handle:
            if handle.one(statement(f"any_{name}"), values) is None:
                return 0  # idle checks are reads
        with self._database.transaction() as handle:
            handle.run(statement(name), values)
            return handle.changes()

    def mend_irregular(self) -> bool:
        """Bring foreign times into the file's form; fail rows that make no sense, with why.

        Returns:
            Whether there were any.
        """
        with self._database.reading() as handle:
            rows = handle.all(statement("list_irregular"), {"limit": BATCH})
        if not rows:
            return False
        with self._database.transaction() as handle:
            for row_id, status, *kinds, raw, normal in rows:
                reason = _why_irregular(bytes(status), kinds, raw, normal)
                if reason is None:
                    handle.run(
                        statement("normalise_run_after"),
                        {"id": row_id, "run_after": normal, "now": now_text()},
                    )
                    continue
                _quarantine(handle, row_id, reason)
        return True

    def fail_unclaimable(self) -> None:
        """Fail what no consumer can ask for, with the reason.

        That is what stands under a queue's name that is not UTF-8 text, and what is ready with a
        ``compatibility`` that is not a JSON object.
        """
        lanes: list[tuple[str, bytes, str]] = []
        unreadable: list[tuple[bytes, str]] = []
        with self._database.reading() as handle:
            any_lane = handle.one(statement("any_lane")) is not None
            for raw, kind in handle.all(statement("list_queue_names")):
                queue = _name_of(raw, kind)
                if queue is None:
                    unreadable.append((bytes(raw), kind))
                elif any_lane:
                    found = handle.all(statement("list_lanes"), {"queue": queue})
                    lanes.extend((queue, bytes(lane), kind) for lane, kind in found)
        for name, kind in unreadable:
            values: dict[str, Any] = {"queue": name, "kind": kind}
            self._fail("list_queued_in", values, f"queue is not UTF-8 text: {name!r}")
        for queue, lane, kind in lanes:
            if kind == "blob" or requirements(readable(lane)) is None:
                values = {"queue": queue, "lane": lane, "kind": kind}
                reason = f"compatibility is not a JSON object: {readable(lane)!r}"
                self._fail("list_ready_in_lane", values, reason)

    def _fail(self, name: str, values: dict[str, Any], reason: str) -> None:
        with self._database.transaction() as handle:
            for (row_id,) in handle.all(statement(name), {**values, "limit": BATCH}):
                _quarantine(handle, row_id, reason)

    def delete_unused_queues(self) -> None:
        """Delete queues that expired, or that delete themselves and have lost their consumers."""
        with self._database.reading() as handle:
            if not handle.all(statement("list_unused_queues")):
                return
        with self._database.transaction() as handle:
            self._topology.delete_unused(handle, now=now_text())

    def prune(self) -> None:
        """Delete rows past their retention and give their pages back, a little at a time."""
        if self._options.retention:
            values = {"before": to_text(time.time() - self._options.retention), "limit": BATCH}
            with self._database.reading() as handle:
                old = handle.one(statement("any_finished_before"), values)
            if old is not None:
                with self._database.transaction() as handle:
                    handle.run(statement("prune_logs"), values)
                    handle.run(statement("prune_key_results"), values)
                    handle.run(statement("prune_keys"), values)
                    handle.all(statement("prune_finished"), values)
        before = to_text(time.time() - _GONE_WORKERS_KEPT_S)
        with self._database.reading() as handle:
            free = handle.one(statement("count_free_pages"))[0]
            gone = handle.one(statement("any_gone_worker"), {"before": before})
        if gone is not None:
            with self._database.transaction() as handle:
                handle.run(statement("prune_workers"), {"before": before})
        if free > 2 * BATCH:
            with self._database.transaction() as handle:
                handle.all(statement("give_back_pages"))

    def checkpoint(self) -> bool:
        """Move the log's frames into the file; start the log anew once it is large.

        Returns:
            Whether the log grows so fast that the next checkpoint should come sooner.

        A passive checkpoint never waits. RESTART waits for readers and keeps writers out
        meanwhile, so its wait is short; without it the log would grow for ever behind readers.
        """
        with self._database.reading() as handle:
            connection = handle.connection
            assert connection is not None
            try:
                frames, _ = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            except (apsw.BusyError, apsw.LockedError):
                return True  # another process is at it
            if frames * FRAME_BYTES > _LARGE_LOG_BYTES:
                restart(connection, _RESTART_WAIT_MS, int(self._options.busy_timeout * 1000))
            return frames * FRAME_BYTES > _LARGE_LOG_BYTES // 2


def _name_of(raw: bytes, kind: str) -> str | None:
    """Return a queue's name; None when it is none that a consumer can ask for."""
    if kind != "text":
        return None
    try:
        return bytes(raw).decode("utf-8")
    except UnicodeDecodeError:
        return None


def _quarantine(handle: Handle, row_id: int, reason: str) -> None:
    """Fail a row that makes no sense."""
    error = f"malformed row: {reason}"
    handle.run(statement("fail_queued"), {"id": row_id, "now": now_text(), "error": error})
    logger.error("Quarantined as failed (%s): %s", reason, describe(None, None, row_id))


def _why_irregular(
    status: bytes, kinds: list[str], raw_time: bytes, normal: str | None
) -> str | None:
    """Return what is wrong with an irregular row; None when only its time needs another form."""
    if status != b"queued":
        return f"status {status.decode('utf-8', 'replace')!r} is unknown"
    for column, kind, wanted in zip(
        ("type", "queue", "priority", "run_after_utc", "compatibility"),
        kinds,
        ("text", "text", "integer", "text", "text"),
        strict=True,
    ):
        if kind != wanted:
            return f"{column} is {kind}, not {wanted}"
    if normal is None:
        return f"run_after_utc is not a time: {raw_time.decode('utf-8', 'replace')!r}"
    return None
