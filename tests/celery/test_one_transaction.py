"""Result, chord part, body and the end of the row are one transaction, whoever dies when."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psutil
import pytest
from celery import chord
from celery.app.task import Context

BROKEN = """
SELECT q.id, q.status, r.status FROM task_queue q LEFT JOIN task_results r USING (task_id)
WHERE (q.status = 'completed' AND r.status IS NOT 'SUCCESS')
   OR (q.status IN ('queued', 'processing') AND r.status = 'SUCCESS')
"""


@pytest.fixture
def lab(make_lab: Callable[..., Any]) -> Any:
    """A lab whose results are in the broker's file."""
    return make_lab(module="results_app")


def claimed(lab: Any, **options: Any) -> Any:
    """Publish a task and claim it, as a worker would; return its request."""
    sent = lab.tasks.add.apply_async((1, 1), **options)
    store = lab.app.backend.store
    (delivery,) = store.claim(store.claimant(), ["celery"], 1)
    return Context(id=sent.id, sqlite_delivery=(store.database.path, str(delivery.tag)))


def take_over(lab: Any, request: Any) -> Any:
    """Put a claimed task back and claim it anew."""
    store = lab.app.backend.store
    lab.database.execute(
        "UPDATE task_queue SET status = 'queued', lease_until_utc = NULL WHERE task_id = ?",
        (request.id,),
    )
    (delivery,) = store.claim(store.claimant(), ["celery"], 1)
    return Context(id=request.id, sqlite_delivery=(store.database.path, str(delivery.tag)))


def test_a_superseded_run_stores_nothing(lab: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Neither an end, nor a state, nor a retry; the newer run's end stands."""
    backend = lab.app.backend
    old = claimed(lab)
    new = take_over(lab, old)
    backend.store_result(new.id, {"step": 1}, "PROGRESS", request=new)
    backend.store_result(old.id, {"step": 9}, "PROGRESS", request=old)
    backend.mark_as_retry(old.id, ValueError("old"), request=old)
    backend.mark_as_failure(old.id, ValueError("old"), request=old)
    backend.mark_as_revoked(old.id, "old", request=old)
    backend.mark_as_done(old.id, "old", request=old)
    assert lab.app.AsyncResult(new.id).info == {"step": 1}
    assert lab.database.get(new.id).status == "processing"
    backend.mark_as_done(new.id, "new", request=new)
    backend.mark_as_failure(old.id, ValueError("old"), request=old)
    assert lab.app.AsyncResult(new.id).get(timeout=10) == "new"
    assert lab.database.get(new.id).status == "completed"
    assert caplog.text.count("Result refused") == 4


def test_a_state_after_the_end_is_refused(lab: Any) -> None:
    """The row has ended with another one; what was stored stays."""
    backend = lab.app.backend
    request = claimed(lab)
    backend.mark_as_failure(request.id, ValueError("end"), request=request)
    backend.store_result(request.id, {"step": 9}, "PROGRESS", request=request)
    backend.mark_as_done(request.id, 1, request=request)
    assert lab.app.AsyncResult(request.id).state == "FAILURE"
    assert lab.database.get(request.id).status == "failed"


def test_an_end_that_cannot_be_stored_is_none(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row goes on if the result does not get into the file."""
    backend = lab.app.backend
    request = claimed(lab)

    def fail(*args: Any) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(backend.store.results, "store", fail)
        with pytest.raises(ZeroDivisionError):
            backend.mark_as_done(request.id, 1, request=request)
    assert lab.database.get(request.id).status == "processing"
    backend.mark_as_done(request.id, 1, request=request)
    assert lab.database.get(request.id).status == "completed"


def test_a_header_task_that_comes_twice_counts_once(lab: Any) -> None:
    """Redelivered before its chord is complete, and after: the body is published once."""
    backend, t = lab.app.backend, lab.tasks
    body = t.total.s().set(task_id="body")
    backend.apply_chord(("g", [lab.app.AsyncResult("a"), lab.app.AsyncResult("b")]), body)
    backend.set_chord_size("g", 2)

    def part(name: str, index: int) -> Any:
        return Context(id=name, group="g", group_index=index, chord=dict(body))

    for name, index in (("a", 0), ("a", 0), ("b", 1), ("b", 1), ("a", 0)):
        backend.mark_as_done(name, index + 10, request=part(name, index))
    rows = lab.database.execute("SELECT payload FROM task_queue WHERE task_id = 'body'")
    assert len(rows) == 1
    assert "[[10, 11]]" in rows[0][0]


def kill_a_child(worker: Any) -> None:
    """Kill one of a worker's processes."""
    with suppress(psutil.NoSuchProcess, IndexError):
        children = psutil.Process(worker.pid).children()
        os.kill(random.choice(children).pid, signal.SIGKILL)  # noqa: S311 - any of them


def test_no_death_comes_between_a_row_and_its_result(lab: Any) -> None:
    """Children and workers are killed at any moment; each look at the file finds both or none."""
    worker = lab.worker("-c", "2")
    header = [lab.tasks.surviving.s(number) for number in range(400)]
    result = chord(header, lab.tasks.total.s())()
    stopped = threading.Event()
    looks, broken = [0], []

    def look() -> None:
        while not stopped.wait(0.002):
            broken.extend(lab.database.execute(BROKEN))
            looks[0] += 1

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        for round_no in range(12):
            time.sleep(random.uniform(0.01, 0.15))  # noqa: S311 - any moment
            if round_no % 6 == 5:
                os.killpg(worker.pid, signal.SIGKILL)
                worker.wait(10)
                worker = lab.worker("-c", "2", name=f"w{round_no}")
            else:
                kill_a_child(worker)
        assert result.get(timeout=60) == sum(range(400))
    finally:
        stopped.set()
        watcher.join(30)
    assert looks[0] > 10
    assert broken == []
    assert lab.database.execute(BROKEN) == []
    rows = lab.database.execute("SELECT count(*) FROM task_queue WHERE type LIKE '%.total'")
    assert rows[0][0] == 1
