"""A worker killed between two steps of one task: nothing lost, nobody waits for ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import WorkerLostError


def settled(lab: Any) -> bool:
    """Whether nothing waits, runs or is owed."""
    busy = (
        "SELECT count(*) FROM task_queue "
        "WHERE outcome_pending OR status IN ('processing', 'queued')"
    )
    return bool(lab.database.execute(busy)[0][0] == 0)


def run_through_a_kill(lab: Any, pool: str) -> None:
    """Start a worker that the task kills, then another one."""
    lab.environment["TEST_WORKER"] = "doomed@test"
    doomed = lab.celery("worker", "-n", "doomed@test", "-P", pool, "-c", "1", log="doomed.log")
    assert doomed.wait(60) == -9
    lab.worker("-P", "solo", name="w2")


@pytest.mark.parametrize(("pool", "where"), [("prefork", "publish"), ("solo", "on_retry")])
def test_killed_around_a_retry(house: Any, pool: str, where: str) -> None:
    """After its publish it runs once more, in the same row; what was before changes nothing."""
    task = house.tasks.killed_retrying if where == "publish" else house.tasks.killed_in_hook
    result = task.delay(where)
    run_through_a_kill(house, pool)
    assert result.get(timeout=30) == (1 if where == "publish" else where)
    house.wait(lambda: settled(house))
    rows = house.database.execute("SELECT status, attempts FROM task_queue")
    assert [tuple(row) for row in rows] == [("completed", 2)]
    assert len(house.lines()) == 2


@pytest.mark.parametrize(("how", "late"), [("on_success", True), ("on_failure", False)])
def test_killed_between_the_result_and_the_ack(house: Any, how: str, late: bool) -> None:
    """The result has ended the row: the task does not run again, and its caller has it."""
    task = house.tasks.killed_in_hook_late if late else house.tasks.killed_in_hook
    result = task.delay(how)
    run_through_a_kill(house, "prefork")
    if how == "on_success":
        assert result.get(timeout=30) == how
    else:
        with pytest.raises(ValueError, match=how):
            result.get(timeout=30)
    house.wait(lambda: settled(house))
    rows = house.database.execute("SELECT status, attempts, deaths FROM task_queue")
    status = "completed" if how == "on_success" else "failed"
    assert [tuple(row) for row in rows] == [(status, 1, 0)]
    assert house.lines() == [how]


def test_killed_before_the_ack_with_results_elsewhere(
    make_lab: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is delivered again, and worker_deduplicate_successful_tasks sees that it succeeded."""
    monkeypatch.setenv("TEST_BACKEND", f"file://{tmp_path}")
    house = make_lab(module="living")
    result = house.tasks.killed_in_hook_late.delay("on_success")
    run_through_a_kill(house, "prefork")
    house.wait(lambda: settled(house))
    rows = house.database.execute("SELECT status, attempts, deaths FROM task_queue")
    assert [tuple(row) for row in rows] == [("completed", 2, 1)]
    assert result.get(timeout=30) == "on_success"
    assert house.lines() == ["on_success"]


@pytest.mark.parametrize("how", ["plain", "chain"])
def test_killed_after_its_replacement_was_published(house: Any, how: str) -> None:
    """The replacement ends with its result; a row left behind ends as lost."""
    result = house.tasks.killed_replacing.delay(how)
    run_through_a_kill(house, "prefork")
    house.wait(lambda: settled(house))
    assert house.app.AsyncResult(result.id).get(timeout=30) == (3 if how == "plain" else 13)
    found = result.get(timeout=30, propagate=False)
    assert found in (3, 13) or isinstance(found, WorkerLostError)
