"""Workers inside the test's process: Celery's testing helper, results, Request classes."""

from __future__ import annotations

from typing import Any

import pytest
from celery import chain, chord
from celery.contrib.testing.worker import start_worker
from celery.exceptions import Reject
from celery.worker.request import Request

from kombu_sqlite import Transport

#: How an app names the broker when nothing imports it: the worker's output says what was loaded.
UNIMPORTED = """
import os, sys
from celery import Celery
app = Celery("bare", broker=os.environ["TEST_BROKER"])
app.conf.update(broker_transport="kombu_sqlite:Transport", task_ignore_result=True)
assert "kombu_sqlite" not in sys.modules

@app.task
def note(value):
    with open(os.environ["TEST_LEDGER"], "a") as ledger:
        ledger.write(value + chr(10))

if __name__ == "__main__":
    note.delay("sent")
    app.worker_main(["worker", "-P", "solo", "-n", "w1@test"])
"""


@pytest.fixture
def remembering(lab: Any) -> Any:
    """The app with its results in memory."""
    lab.app.conf.update(
        result_backend="cache+memory://", task_ignore_result=False, result_expires=60
    )
    return lab


@pytest.mark.parametrize(
    ("pool", "concurrency"), [("solo", 1), ("threads", 4)], ids=["solo", "threads"]
)
def test_an_embedded_worker_returns_results(remembering: Any, pool: str, concurrency: int) -> None:
    """From the file to the memory of the same process; chains as well."""
    app, add = remembering.app, remembering.tasks.add

    with start_worker(
        app, perform_ping_check=False, pool=pool, concurrency=concurrency, shutdown_timeout=30
    ):
        results = [add.apply_async((n, 1), ignore_result=False) for n in range(50)]
        assert [result.get(timeout=20) for result in results] == list(range(1, 51))
        assert chain(add.s(1, 2), add.s(3)).apply_async().get(timeout=20) == 6
        body = remembering.tasks.total.s()
        assert chord([add.s(n, n) for n in range(5)], body).apply_async().get(timeout=20) == 20
        with pytest.raises(ValueError, match="on purpose"):
            remembering.tasks.fail.apply_async(("on purpose",)).get(timeout=20)
    stats = remembering.database.stats()
    assert (stats.completed_tasks, stats.failed_tasks) == (stats.total_tasks - 1, 1)


def test_a_second_embedded_worker_works_like_the_first(lab: Any) -> None:
    """One after the other in the same process, as a test suite starts them."""
    for number in range(3):
        with start_worker(lab.app, perform_ping_check=False, pool="solo", shutdown_timeout=30):
            lab.tasks.note.delay(number)
            lab.wait(lambda number=number: len(lab.lines()) == number + 1)
        assert lab.consumers() == []


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_a_users_own_request_class_is_kept(lab: Any, pool: str) -> None:
    """All that it overrides is called, and ours after it."""
    calls: list[tuple[str, str]] = []

    class Mine(Request):
        def revoked(self) -> bool:
            calls.append((self.name, "revoked"))
            return bool(super().revoked())

        def on_accepted(self, pid: int, time_accepted: float) -> None:
            calls.append((self.name, "accepted"))
            super().on_accepted(pid, time_accepted)

        def acknowledge(self) -> None:
            calls.append((self.name, "acknowledged"))
            super().acknowledge()

        def reject(self, requeue: bool = False) -> None:
            calls.append((self.name, "rejected"))
            super().reject(requeue)

        def on_failure(self, *args: Any, **kwargs: Any) -> None:
            calls.append((self.name, "failed"))
            super().on_failure(*args, **kwargs)

    @lab.app.task(name="refuse", acks_late=True, shared=False)
    def refuse() -> None:
        raise Reject(requeue=False)

    lab.tasks.note.Request = refuse.Request = Mine
    with start_worker(lab.app, perform_ping_check=False, pool=pool, shutdown_timeout=30):
        lab.tasks.note.delay("mine")
        refuse.delay()
        lab.wait(lambda: lab.database.stats().failed_tasks == 1)
        lab.wait(lambda: lab.database.stats().completed_tasks == 1)
    of_note = [call for name, call in calls if name == lab.tasks.note.name]
    assert of_note == ["revoked", "accepted", "acknowledged"]
    assert [call for name, call in calls if name == "refuse"] == [
        "revoked",
        "accepted",
        "failed",
        "rejected",
    ]
    assert issubclass(lab.tasks.note.Request, Mine)
    assert lab.database.get(1).processing_started_utc is not None


def test_a_request_class_that_names_its_parent_bypasses_nothing(lab: Any) -> None:
    """Without super(), as old code does: starts and ends are written all the same."""
    states: list[str] = []

    class Mine(Request):
        def acknowledge(self) -> None:
            Request.acknowledge(self)
            states.append(lab.database.get(1).status)

        def on_failure(self, *args: Any, **kwargs: Any) -> None:
            Request.on_failure(self, *args, **kwargs)

    @lab.app.task(name="breaks", shared=False)
    def breaks() -> None:
        raise ValueError("on purpose")

    breaks.Request = Mine
    with start_worker(lab.app, perform_ping_check=False, pool="threads", shutdown_timeout=30):
        breaks.delay()
        lab.wait(lambda: lab.database.stats().failed_tasks == 1)
    assert states == ["processing"]
    row = lab.database.get(1)
    assert row.processing_started_utc is not None
    assert row.error_message == "ValueError('on purpose')"


def test_the_broker_can_be_named_by_its_class(lab: Any) -> None:
    """``broker_transport`` instead of an import, in a producer and in a worker."""
    lab.app.conf.broker_transport = "kombu_sqlite:Transport"
    with lab.app.connection_for_write() as connection:
        assert isinstance(connection.transport, Transport)
    (lab.folder / "bare.py").write_text(UNIMPORTED)
    program = lab.script("import runpy; runpy.run_path('bare.py', run_name='__main__')")
    lab.wait(lambda: lab.lines() == ["sent"] or program.poll())
    assert lab.lines() == ["sent"]
    assert lab.stop(program) == 0
    assert lab.database.stats().completed_tasks == 1
