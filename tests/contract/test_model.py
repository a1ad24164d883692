"""The store against a plain model of it, through random sequences of what users do."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from kombu_sqlite import LeaseLost, QueueDatabase
from kombu_sqlite.models import Delivery, Settlement

QUEUES = ("one", "two")


class StoreModel(RuleBasedStateMachine):
    """Rows as dictionaries; every claim and end is compared."""

    deliveries: Any = Bundle("deliveries")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.database = QueueDatabase(str(Path(self.folder.name) / "q.db"))
        self.rows: dict[int, dict[str, Any]] = {}

    def teardown(self) -> None:
        """Close and delete the file."""
        self.database.close()
        self.folder.cleanup()

    @rule(queue=st.sampled_from(QUEUES), priority=st.integers(90, 110), waits=st.booleans())
    def publish(self, queue: str, priority: int, waits: bool) -> None:
        """A new row, ready or waiting for the far future."""
        due = "2999-01-01 00:00:00" if waits else None
        task = self.database.enqueue("t", queue=queue, priority=priority, run_after_utc=due)
        assert task.id not in self.rows
        self.rows[task.id] = {
            "queue": queue,
            "priority": priority,
            "status": "queued",
            "ready": not waits,
            "attempts": 0,
            "delivery_no": 0,
        }

    @rule(
        target=deliveries,
        queue=st.sampled_from(QUEUES),
        limit=st.integers(1, 4),
    )
    def claim(self, queue: str, limit: int) -> Any:
        """The most urgent, then the oldest; each with a new tag."""
        ready = [
            (row["priority"], id_)
            for id_, row in self.rows.items()
            if row["queue"] == queue and row["status"] == "queued" and row["ready"]
        ]
        expected = [id_ for _, id_ in sorted(ready)[:limit]]
        found = self.database.claim(queue, limit)
        assert [delivery.tag.row_id for delivery in found] == expected
        for delivery in found:
            row = self.rows[delivery.tag.row_id]
            row["attempts"] += 1
            row["delivery_no"] += 1
            row["status"] = "processing"
            assert delivery.tag.delivery_no == row["delivery_no"]
            assert delivery.redelivered == (row["delivery_no"] > 1)
        return found

    def holds(self, delivery: Delivery) -> bool:
        """Whether that delivery is the row's last and has not ended."""
        row = self.rows[delivery.tag.row_id]
        return row["status"] == "processing" and row["delivery_no"] == delivery.tag.delivery_no

    def lost(self, delivery: Delivery) -> bool:
        """Whether its end has to be refused aloud: somebody else has the row, or may get it."""
        row = self.rows[delivery.tag.row_id]
        return row["delivery_no"] != delivery.tag.delivery_no or row["status"] == "queued"

    @rule(found=deliveries, status=st.sampled_from(["completed", "failed", "requeue", "release"]))
    def settle(self, found: list[Delivery], status: str) -> None:
        """Only the holder of the last tag can end or put back; also the second time."""
        for delivery in found:
            row = self.rows[delivery.tag.row_id]
            holds, lost = self.holds(delivery), self.lost(delivery)
            settlement = Settlement(delivery.tag, status, "because")
            refused = self.database._store.settle([settlement])
            assert bool(refused) == lost
            if holds:
                ended = status in ("completed", "failed")
                row["status"] = status if ended else "queued"
                row["attempts"] -= status == "release"

    @rule(found=consumes(deliveries))
    def renew(self, found: list[Delivery]) -> None:
        """A lease that is not held cannot be extended."""
        for delivery in found:
            try:
                self.database.renew(delivery)
                renewed = True
            except LeaseLost:
                renewed = False
            assert renewed == self.holds(delivery)

    @rule(number=st.integers(1, 30))
    def cancel(self, number: int) -> None:
        """What is queued, waiting or ready."""
        row = self.rows.get(number)
        cancelled = self.database.cancel(number)
        assert cancelled == (row is not None and row["status"] == "queued")
        if row is not None and cancelled:
            row["status"] = "cancelled"

    @rule(number=st.integers(1, 30))
    def retry(self, number: int) -> None:
        """What failed or was cancelled is ready again."""
        row = self.rows.get(number)
        retried = self.database.retry(number)
        assert retried == (row is not None and row["status"] in ("failed", "cancelled"))
        if row is not None and retried:
            row.update(status="queued", ready=True)

    @rule(queue=st.sampled_from(QUEUES))
    def purge(self, queue: str) -> None:
        """Everything nobody holds."""
        waiting = [
            row for row in self.rows.values() if row["queue"] == queue and row["status"] == "queued"
        ]
        assert self.database._store.size(queue) == len(waiting)
        assert self.database._store.purge(queue) == len(waiting)
        for row in waiting:
            row["status"] = "cancelled"

    @invariant()
    def statistics_agree(self) -> None:
        """The counters are those of the rows."""
        stats = self.database.stats()
        states = [row["status"] for row in self.rows.values()]
        assert (stats.queued_tasks, stats.processing_tasks, stats.completed_tasks) == tuple(
            map(states.count, ("queued", "processing", "completed"))
        )
        assert stats.total_tasks == len(states)

    @invariant()
    def rows_agree(self) -> None:
        """State, attempts and number of every row."""
        found = self.database.execute("SELECT id, status, attempts, delivery_no FROM task_queue")
        assert {row[0]: tuple(row)[1:] for row in found} == {
            id_: (row["status"], row["attempts"], row["delivery_no"])
            for id_, row in self.rows.items()
        }


StoreModel.TestCase.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
TestStore = StoreModel.TestCase
