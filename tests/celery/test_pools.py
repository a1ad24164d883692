"""The life of a task in every pool and with every kind of result backend."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import celery_integration

POOLS = {
    "threads": ("-P", "threads", "-c", "2"),
    "solo": ("-P", "solo"),
    "gevent": ("-P", "gevent", "-c", "10"),
    "eventlet": ("-P", "eventlet", "-c", "10"),
}


def settled(lab: Any) -> bool:
    """Whether nothing waits, runs or is owed."""
    busy = (
        "SELECT count(*) FROM task_queue "
        "WHERE outcome_pending OR status IN ('processing', 'queued')"
    )
    return bool(lab.database.execute(busy)[0][0] == 0)


def send_everything(lab: Any) -> dict[str, Any]:
    """One task for each way to end that needs no pool process."""
    tasks = lab.tasks
    return {
        "returns": tasks.add.delay(1, 2),
        "raises": tasks.boom.delay(),
        "retries": tasks.flaky.delay(2),
        "replaced": tasks.replaced.delay("plain"),
        "chained": tasks.replaced.delay("chain"),
        "rejects": tasks.refused.delay(True),
        "rejects late": tasks.refused_late.delay(),
        "requeues": tasks.refused_late.delay("again"),
        "ignored": tasks.ignored.delay(),
        "ignored failed": tasks.ignored.delay("FAILURE"),
        "forgotten": tasks.forgotten.delay(),
        "forgotten failed": tasks.forgotten.delay(True),
        "unacked": tasks.boom_unacked.delay(),
        "expired": tasks.add.apply_async((9, 9), expires=0.01),
        "cancelled": tasks.add.apply_async((8, 8), countdown=3600),
    }


#: Status of the first row of each, and how often it ran.
ENDS = {
    "returns": ("completed", 1),
    "raises": ("failed", 1),
    "retries": ("completed", 3),
    "replaced": ("completed", 2),
    "chained": ("completed", 1),
    "rejects": ("failed", 1),
    "rejects late": ("failed", 1),
    "requeues": ("completed", 2),
    "ignored": ("completed", 1),
    "ignored failed": ("failed", 1),
    "forgotten": ("completed", 1),
    "forgotten failed": ("failed", 1),
    "unacked": ("failed", 1),
    "expired": ("cancelled", 0),
    "cancelled": ("cancelled", 0),
}

RESULTS = {
    "returns": 3,
    "raises": "ValueError",
    "retries": 2,
    "replaced": 3,
    "chained": 13,
    "rejects": "Reject",
    "rejects late": "Reject",
    "requeues": "again",
    "ignored failed": "ValueError",
    "expired": "TaskRevokedError",
    "cancelled": "TaskRevokedError",
}


def ends(lab: Any, sent: dict[str, Any]) -> dict[str, tuple[str, int]]:
    """Status and attempts of the first row of each task."""
    found = {}
    for name, result in sent.items():
        row = lab.database.execute(
            "SELECT status, attempts FROM task_queue WHERE task_id = ? ORDER BY id LIMIT 1",
            (result.id,),
        )[0]
        found[name] = tuple(row)
    return found


def outcomes(sent: dict[str, Any]) -> dict[str, Any]:
    """What the callers get, an exception as its class's name."""
    found = {}
    for name in RESULTS:
        value = sent[name].get(timeout=20, propagate=False)
        found[name] = type(value).__name__ if isinstance(value, BaseException) else value
    return found


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS.keys())
def test_every_end_is_in_the_row_and_told(house: Any, pool: tuple[str, ...]) -> None:
    """In each pool as in prefork."""
    sent = send_everything(house)
    celery_integration.cancel(house.app, sent["cancelled"].id)
    worker = house.worker(*pool)
    assert outcomes(sent) == RESULTS
    house.wait(lambda: settled(house))
    assert ends(house, sent) == ENDS
    assert house.stop(worker) == 0


@pytest.mark.parametrize(
    ("pool", "backend"), [("prefork", "file"), ("prefork", "disabled"), ("threads", "file")]
)
def test_every_end_is_in_the_row_whatever_backend(
    make_lab: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    pool: str,
    backend: str,
) -> None:
    """Results elsewhere, or nowhere: the worker's main process ends the rows."""
    (tmp_path / "results").mkdir()
    url = f"file://{tmp_path / 'results'}" if backend == "file" else "disabled://"
    monkeypatch.setenv("TEST_BACKEND", url)
    house = make_lab(module="living")
    sent = send_everything(house)
    celery_integration.cancel(house.app, sent["cancelled"].id)
    worker = house.worker("-P", pool, "-c", "2")
    if backend == "file":
        assert outcomes(sent) == RESULTS
    house.wait(lambda: settled(house))
    expected = dict(ENDS)
    if backend == "disabled":
        expected["ignored failed"] = ("completed", 1)  # nowhere does it say that it failed
    assert ends(house, sent) == expected
    if (pool, backend) == ("prefork", "file"):
        again = house.tasks.dies_again.delay("once")
        stopped = house.tasks.endless.apply_async(time_limit=0.5)
        house.wait(lambda: house.database.get(again.id).status == "completed")
        house.wait(lambda: house.database.get(stopped.id).status == "failed")
    assert house.stop(worker) == 0


@pytest.mark.parametrize("prefetch", ["0", "1"])
def test_prefetch_is_as_configured(
    make_lab: Any, monkeypatch: pytest.MonkeyPatch, prefetch: str
) -> None:
    """All there is, or one for each process; children come and go meanwhile."""
    monkeypatch.setenv("TEST_PREFETCH", prefetch)
    house = make_lab(module="living")
    first = house.tasks.gated_late.delay("one", 1)
    results = [house.tasks.add.delay(number, 1) for number in range(12)]
    house.worker("--autoscale", "3,1", "--max-tasks-per-child", "4")
    assert [result.get(timeout=30) for result in results] == [n + 1 for n in range(12)]
    Path(f"{house.ledger}-one").touch()
    assert first.get(timeout=20) == 1
    house.wait(lambda: settled(house))
    attempts = house.database.execute("SELECT DISTINCT attempts, deaths, status FROM task_queue")
    assert [tuple(row) for row in attempts] == [(1, 0, "completed")]


def test_children_of_one_task_each_lose_and_repeat_nothing(house: Any) -> None:
    """Acknowledged early, in a pool that grows and shrinks; their retries included."""
    added = [house.tasks.add.delay(number) for number in range(30)]
    retried = [house.tasks.flaky.delay(1) for _ in range(4)]
    house.worker("--autoscale", "4,1", "--max-tasks-per-child", "1")
    assert [result.get(timeout=60) for result in added] == list(range(30))
    assert [result.get(timeout=60) for result in retried] == [1] * 4
    house.wait(lambda: settled(house))
    assert Counter(house.lines()) == {f"sum {number}": 1 for number in range(30)}
    rows = house.database.execute(
        "SELECT type, status, attempts, deaths, count(*) FROM task_queue GROUP BY 1, 2, 3, 4"
    )
    assert list(map(tuple, rows)) == [
        ("living.add", "completed", 1, 0, 30),
        ("living.flaky", "completed", 2, 0, 4),
    ]


@pytest.mark.parametrize("pool", ["prefork", "threads"])
@pytest.mark.parametrize("kind", ["gated", "gated_late"])
def test_without_prefetch_a_worker_leaves_to_others_what_it_cannot_start(
    house: Any, pool: str, kind: str
) -> None:
    """With ``worker_disable_prefetch``; early acknowledged tasks that run count as well."""
    task = getattr(house.tasks, kind)
    results = [task.delay(f"gate{number}", number) for number in range(5)]
    first = house.worker("-P", pool, "-c", "2", "--disable-prefetch", name="w1")
    house.wait(lambda: len(house.lines()) == 2)
    second = house.worker("-P", pool, "-c", "2", "--disable-prefetch", name="w2")
    house.wait(lambda: len(house.lines()) == 4)
    assert house.database.stats(queue="celery").queued_tasks == 1
    for number in range(5):
        Path(f"{house.ledger}-gate{number}").touch()
    assert [result.get(timeout=20) for result in results] == list(range(5))
    assert "only supported for Redis" not in house.log("w1") + house.log("w2")
    assert house.stop(first) == house.stop(second) == 0


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_a_pool_that_cannot_terminate_lets_a_task_end(house: Any, pool: str) -> None:
    """With its own result, which its caller gets; the worker goes on."""
    house.worker("-P", pool, "-c", "1")
    result = house.tasks.gated.delay("one", 1)
    house.wait(lambda: house.lines() == ["begin one"])
    outcome = celery_integration.cancel(house.app, result.id, terminate=True)
    assert outcome.status == "running"
    if pool == "threads":  # solo hears nothing while it runs a task
        house.wait(lambda: "does not implement kill_job" in house.log())
    Path(f"{house.ledger}-one").touch()
    assert result.get(timeout=20) == 1
    assert house.tasks.add.delay(1, 1).get(timeout=20) == 2
    house.wait(lambda: settled(house))
    assert house.database.get(result.id).status == "completed"
