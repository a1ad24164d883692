"""One row is one task: in which state it ends, with which result, whatever happens to it."""

from __future__ import annotations

from typing import Any

import pytest
from celery.exceptions import WorkerLostError
from celery.result import AsyncResult


def row_of(lab: Any, result: AsyncResult) -> Any:
    """The newest row of a task."""
    return lab.database.get(result.id)


def ended(lab: Any, result: AsyncResult) -> Any:
    """The only row of a task, once it has ended and owes nothing."""
    lab.wait(lambda: (row := row_of(lab, result)) and row.finished_at_utc)
    rows = lab.database.execute(
        "SELECT outcome_pending FROM task_queue WHERE task_id = ?", (result.id,)
    )
    assert len(rows) == 1
    return row_of(lab, result)


def outcome(result: AsyncResult) -> Any:
    """What a caller gets, an exception as its class's name."""
    found = result.get(timeout=20, propagate=False)
    return type(found).__name__ if isinstance(found, BaseException) else found


# -- one worker for all of these -------------------------------------------------------------------


def test_a_task_that_returns_is_completed(home: Any) -> None:
    """With its result; started and ended are in the row, the lease is not."""
    result = home.tasks.add.delay(1, 2)
    assert result.get(timeout=20) == 3
    row = ended(home, result)
    assert (row.status, row.attempts, row.deaths, row.error_message) == ("completed", 1, 0, None)
    assert row.created_at_utc <= row.processing_started_utc <= row.finished_at_utc
    assert row.lease_until_utc is None


def test_a_task_that_raises_is_failed_with_its_error(home: Any) -> None:
    """The row names the error, the caller gets it."""
    result = home.tasks.boom.apply_async(link_error=home.tasks.heard.s())
    with pytest.raises(ValueError, match="on purpose"):
        result.get(timeout=20)
    row = ended(home, result)
    assert (row.status, row.error_message) == ("failed", "ValueError('on purpose')")
    home.wait(lambda: f"heard {result.id} ValueError" in home.lines())


def test_a_retry_is_the_same_row(home: Any) -> None:
    """Its attempts grow, its priority stays, the story tells why."""
    result = home.tasks.flaky.apply_async((2,), priority=7)
    assert result.get(timeout=20) == 2
    row = ended(home, result)
    assert (row.status, row.attempts, row.deaths, row.priority) == ("completed", 3, 0, 93)

    def story() -> list[str | None]:
        return [line.message for line in home.database.logs(row.id)]

    assert story().count("published again by its run") == 2
    # a run says why it asked for another one after it has done so: the other may be quicker
    home.wait(lambda: sum("flaky" in str(message) for message in story()) == 2)


def test_a_retry_for_later_waits_in_the_file(home: Any) -> None:
    """Queued, with its time; nobody holds it."""
    result = home.tasks.patient.delay()
    home.wait(lambda: result.state == "RETRY")
    row = row_of(home, result)
    assert (row.status, row.attempts, row.locked_by) == ("queued", 1, None)
    assert (row.run_after_utc - row.created_at_utc).total_seconds() > 3500
    result.revoke()
    assert outcome(result) == "TaskRevokedError"


def test_a_retry_for_another_queue_is_a_new_row(home: Any) -> None:
    """The old one is completed; the caller waits for the new one."""
    home.app.control.add_consumer("elsewhere", reply=True, timeout=10, limit=1)
    result = home.tasks.flaky.apply_async((1, "elsewhere"), idempotency_key="moves")
    assert result.get(timeout=20) == 1
    rows = home.database.execute(
        "SELECT queue, status, idempotency_key FROM task_queue WHERE task_id = ? ORDER BY id",
        (result.id,),
    )
    assert [tuple(row) for row in rows] == [
        ("celery", "completed", None),
        ("elsewhere", "completed", "moves"),
    ]
    again = home.tasks.flaky.apply_async((1, "elsewhere"), idempotency_key="moves")
    assert again.id == result.id


@pytest.mark.parametrize("how", ["plain", "same"])
def test_a_replacement_by_a_plain_task_is_the_same_row(home: Any, how: str) -> None:
    """Which ends as the replacement does."""
    result = home.tasks.replaced.apply_async((how,), idempotency_key=f"replaced {how}")
    assert result.get(timeout=20) == {"plain": 3, "same": "done"}[how]
    row = ended(home, result)
    assert (row.status, row.attempts) == ("completed", 2)
    assert row.type == {"plain": "living.add", "same": "living.replaced"}[how]
    assert row.idempotency_key == f"replaced {how}"


@pytest.mark.parametrize("how", ["chain", "group"])
def test_a_replacement_by_a_canvas_ends_the_row(home: Any, how: str) -> None:
    """Completed, "replaced"; the caller gets what the canvas returns."""
    result = home.tasks.replaced.apply_async((how,), idempotency_key=f"replaced {how}")
    expected = {"chain": 13, "group": [3, 30]}[how]
    assert result.get(timeout=20) == expected
    (first,) = home.database.execute(
        "SELECT id FROM task_queue WHERE task_id = ? AND type = 'living.replaced'", (result.id,)
    )
    home.wait(lambda: home.database.get(first[0]).status == "completed")
    assert home.database.get(first[0]).error_message == "replaced"


@pytest.mark.parametrize(
    ("name", "args", "error"),
    [
        ("refused", (), "no"),
        ("refused", (True,), "no"),
        ("refused_late", (), "no"),
    ],
    ids=["early", "early-requeue", "late"],
)
def test_a_task_that_rejects_itself_is_failed(
    home: Any, name: str, args: tuple[Any, ...], error: str
) -> None:
    """Also after an early ack, when it cannot go back; the caller is told, once."""
    result = home.tasks.app.tasks[f"living.{name}"].apply_async(
        args, link_error=home.tasks.heard.s()
    )
    assert outcome(result) == "Reject"
    row = ended(home, result)
    assert row.status == "failed"
    assert error in row.error_message
    assert result.state == "FAILURE"
    home.wait(lambda: f"heard {result.id} Reject" in home.lines())
    assert home.lines().count(f"heard {result.id} Reject") == 1


def test_a_task_that_rejects_itself_with_requeue_runs_again(home: Any) -> None:
    """Before a late ack; no death is counted."""
    result = home.tasks.refused_late.delay("again")
    assert result.get(timeout=20) == "again"
    row = ended(home, result)
    assert (row.status, row.attempts, row.deaths) == ("completed", 2, 0)


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (None, "completed"),
        ("SUCCESS", "completed"),
        ("FAILURE", "failed"),
        ("REVOKED", "cancelled"),
    ],
)
def test_an_ignored_task_follows_the_state_it_has_stored(
    home: Any, state: str | None, status: str
) -> None:
    """And is completed where it has stored none."""
    result = home.tasks.ignored.delay(state)
    assert ended(home, result).status == status
    assert result.state == (state or "PENDING")


def test_an_ignored_task_with_an_unreadable_state_ends(home: Any) -> None:
    """A failure must come with an exception; one that comes with text stops nobody."""
    result = home.tasks.ignored.delay("FAILURE", "text")
    assert ended(home, result).status == "completed"


@pytest.mark.parametrize(("fails", "status"), [(False, "completed"), (True, "failed")])
def test_a_task_without_a_result_ends_its_row(home: Any, fails: bool, status: str) -> None:
    """The worker's main process does it."""
    result = home.tasks.forgotten.delay(fails)
    row = ended(home, result)
    assert row.status == status
    assert row.error_message == ("ValueError('forgotten')" if fails else None)


def test_a_failure_that_is_no_ack_is_told_once(home: Any) -> None:
    """acks_on_failure_or_timeout=False: rejected, failed, one call of its errback."""
    result = home.tasks.boom_unacked.apply_async(link_error=home.tasks.heard.s())
    row = ended(home, result)
    assert (row.status, row.error_message) == ("failed", "ValueError('unacked')")
    home.wait(lambda: f"heard {result.id} ValueError" in home.lines())
    marker = home.tasks.add.delay(0, 0)
    assert marker.get(timeout=20) == 0
    assert sum(line.startswith(f"heard {result.id}") for line in home.lines()) == 1


def test_a_lost_pool_process_fails_its_task(home: Any) -> None:
    """Early ack, and late ack without reject_on_worker_lost: WorkerLostError, no second run."""
    sent = [
        task.apply_async(link_error=home.tasks.heard.s())
        for task in (home.tasks.dies, home.tasks.dies_late)
    ]
    for result in sent:
        with pytest.raises(WorkerLostError):
            result.get(timeout=20)
        row = ended(home, result)
        assert (row.status, row.attempts) == ("failed", 1)
        assert "signal 9" in row.error_message
        heard = f"heard {result.id} WorkerLostError"
        home.wait(lambda heard=heard: heard in home.lines())


def test_reject_on_worker_lost_runs_a_task_again(home: Any) -> None:
    """Once more if it died once; a death is counted."""
    result = home.tasks.dies_again.delay("survives")
    assert result.get(timeout=30) == "survives"
    row = ended(home, result)
    assert (row.status, row.attempts, row.deaths) == ("completed", 2, 1)
    story = [line.message for line in home.database.logs(row.id)]
    assert "its process died while it ran" in story


def test_a_retry_is_no_redelivery(home: Any) -> None:
    """Though it is the same row; what comes back from a lost process is one."""
    home.tasks.retries_and_dies.delay("a retry").get(timeout=30)
    runs = [line for line in home.lines() if line.startswith("run ")]
    assert runs == ["run 0 False", "run 1 False", "run 1 True"]


def test_a_task_that_always_kills_its_process_ends(home: Any) -> None:
    """After max_attempts deaths; its caller is told."""
    result = home.tasks.dies_again.apply_async(link_error=home.tasks.heard.s())
    with pytest.raises(WorkerLostError, match="delivery attempts exhausted: 3 of 3"):
        result.get(timeout=60)
    row = ended(home, result)
    assert (row.status, row.attempts, row.deaths) == ("failed", 3, 3)
    home.wait(lambda: f"heard {result.id} WorkerLostError" in home.lines())


def test_retry_on_worker_lost_continues_the_row(home: Any) -> None:
    """Celery's own retries bound it."""
    if not hasattr(home.app.Task, "retry_on_worker_lost"):
        pytest.skip("retry_on_worker_lost came with Celery 5.7")
    survivor, mortal = home.tasks.dies_retried.delay("survivor"), home.tasks.dies_retried.delay()
    assert survivor.get(timeout=30) == "survivor"
    with pytest.raises(WorkerLostError):
        mortal.get(timeout=60)
    states = [(row.status, row.attempts) for row in (ended(home, survivor), ended(home, mortal))]
    assert states == [("completed", 2), ("failed", 2)]


@pytest.mark.parametrize("name", ["endless", "endless_late"])
@pytest.mark.parametrize("soft", [True, False], ids=["soft", "hard"])
def test_a_time_limit_fails_a_task(home: Any, name: str, soft: bool) -> None:
    """Soft and hard, acknowledged early and late."""
    limits = {"soft_time_limit": 0.5} if soft else {"time_limit": 0.5}
    result = home.app.tasks[f"living.{name}"].apply_async(link_error=home.tasks.heard.s(), **limits)
    assert outcome(result) == ("SoftTimeLimitExceeded" if soft else "TimeLimitExceeded")
    row = ended(home, result)
    assert (row.status, row.attempts) == ("failed", 1)
    assert "TimeLimitExceeded" in row.error_message
    home.wait(lambda: any(line.startswith(f"heard {result.id}") for line in home.lines()))
    assert home.tasks.add.delay(0, 0).get(timeout=20) == 0
    assert sum(line.startswith(f"heard {result.id}") for line in home.lines()) == 1


def test_a_time_limit_that_is_no_ack_runs_a_task_again(home: Any) -> None:
    """The hard one counts a death; the caller hears of the second run in the end."""
    result = home.tasks.endless_unacked.apply_async(("second",), time_limit=1)
    home.wait(lambda: (row := row_of(home, result)) and row.status == "completed")
    row = ended(home, result)
    assert (row.attempts, row.deaths) == (2, 1)
    assert AsyncResult(result.id, app=home.app).get(timeout=20) == "second"


def test_a_task_that_exits_is_failed(home: Any) -> None:
    """SystemExit takes the pool's process along."""
    result = home.tasks.leaves.delay()
    assert outcome(result) == "WorkerLostError"
    assert ended(home, result).status == "failed"


def test_nothing_is_left_in_processing(home: Any) -> None:
    """After all of the above."""
    home.wait(lambda: home.database.stats().processing_tasks == 0)
    owed = "SELECT count(*) FROM task_queue WHERE outcome_pending"
    home.wait(lambda: home.database.execute(owed)[0][0] == 0)
