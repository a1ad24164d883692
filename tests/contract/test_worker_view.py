"""What ``v_worker_status`` says of a worker."""

from __future__ import annotations

from kombu_sqlite import QueueDatabase
from kombu_sqlite.options import Options
from kombu_sqlite.store import Store


def test_a_worker_is_active_stale_or_gone(queue_path: str, database: QueueDatabase) -> None:
    """By its heartbeat and whether it was retired; one that leaves in good order has no row."""
    store = Store(Options(queue_path))
    session = store.session()
    session.describe("w1@here", 3)

    def told() -> list[tuple[object, ...]]:
        rows = database.execute(
            "SELECT status, hostname, concurrency, pid > 0, heartbeat_utc IS NOT NULL "
            "FROM v_worker_status"
        )
        return [tuple(row) for row in rows]

    assert told() == [("active", "w1@here", 3, 1, 1)]
    (worker,) = database.workers()
    assert (worker.hostname, worker.concurrency) == ("w1@here", 3)
    database.execute("UPDATE workers SET heartbeat_utc = '2020-01-01 00:00:00.000'")
    assert told()[0][0] == "stale"
    database.execute("UPDATE workers SET lock_byte = NULL")
    assert told()[0][0] == "gone"
    store.close()
    assert told() == []
