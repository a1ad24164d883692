"""What the elected process keeps in order when there is much of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kombu_sqlite import QueueDatabase

Wait = Callable[..., Any]

MANY = """
WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < :many)
INSERT INTO task_queue (type, payload, {columns}) SELECT 't', {values} FROM n
"""


def test_more_expired_messages_than_one_transaction_takes_are_cancelled(
    database: QueueDatabase, wait_until: Wait
) -> None:
    """Nobody asks for any of them."""
    database.claim("nothing")  # stands for the election
    sql = MANY.format(columns="queue, expires_at_utc", values="'{}', 'q', '2020-01-01 00:00:00'")
    database.execute(sql, {"many": 1200})
    wait_until(lambda: database.stats(queue="q").cancelled_tasks == 1200)
    assert {task.error_message for task in database.list(limit=1200)} == {"expired"}


def test_free_pages_go_back_to_the_disk(database: QueueDatabase, wait_until: Wait) -> None:
    """A little at a time, once there are many; what is left is whole."""

    def pragma(name: str) -> Any:
        return database.execute(f"PRAGMA {name}")[0][0]

    database.claim("nothing")
    ended = "printf('%.*c', 20000, 'x'), 'failed', '2020-01-01 00:00:00'"
    sql = MANY.format(columns="status, finished_at_utc", values=ended)
    database.execute(sql, {"many": 600})
    kept = database.enqueue("kept")
    most = pragma("page_count")
    assert most > 2000
    wait_until(lambda: database.stats().total_tasks == 1)  # past their retention
    wait_until(lambda: pragma("page_count") < most)
    assert pragma("integrity_check") == "ok"
    assert database.list() == [kept]
