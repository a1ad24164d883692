"""One key, one task: whoever publishes it again gets the first one's id and result."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, chain, chord, current_app, group
from celery.exceptions import ImproperlyConfigured, TaskRevokedError

import celery_integration
from kombu_sqlite import IdempotencyConflict

#: Publishes once with a key when the gate opens; says which id it got and which result.
PUBLISHER = """
import living, sys
living.wait_for_gate("go")
result = living.add.apply_async((3, 4), idempotency_key="from many")
print(result.id, result.get(timeout=30))
"""


def open_gate(lab: Any, name: str) -> None:
    """Let whoever waits for a gate go on."""
    Path(f"{lab.ledger}-{name}").touch()


def rows(lab: Any) -> int:
    """How many tasks the file holds."""
    return int(lab.database.stats().total_tasks)


def settled(lab: Any) -> bool:
    """Whether nothing waits, runs or is owed."""
    busy = (
        "SELECT count(*) FROM task_queue "
        "WHERE outcome_pending OR status IN ('processing', 'queued')"
    )
    return bool(lab.database.execute(busy)[0][0] == 0)


@pytest.fixture
def quiet(home: Any) -> Any:
    """The shared worker with an empty ledger and nothing to do."""
    home.wait(lambda: settled(home))
    home.forget_lines()
    return home


# -- without a worker ------------------------------------------------------------------------------


def test_a_second_publish_adds_nothing(house: Any) -> None:
    """By option, by header, by name; the id is the first one's."""
    first = house.tasks.add.apply_async((1, 2), idempotency_key="a")
    others = [
        house.tasks.add.apply_async((1, 2), idempotency_key="a"),
        house.tasks.add.apply_async((1, 2), headers={"idempotency_key": "a"}),
        house.app.send_task("living.add", (1, 2), idempotency_key="a"),
        house.tasks.add.s(1, 2).apply_async(idempotency_key="a"),
        house.tasks.add.apply_async((1, 2), idempotency_key="a", queue="other"),
    ]
    assert {other.id for other in others} == {first.id}
    assert rows(house) == 1
    row = house.database.get(first.id)
    assert row.idempotency_key == "a"
    assert house.tasks.add.apply_async((1, 2), idempotency_key="b").id != first.id


def test_an_idempotent_task_needs_no_key(house: Any) -> None:
    """Its name and arguments are one, whatever form they come in."""
    first = house.tasks.once.delay(1)
    assert house.tasks.once.delay(1).id == first.id
    assert house.app.send_task("living.once", [1]).id == first.id
    assert house.tasks.once.delay(2).id != first.id
    assert rows(house) == 2


def test_others_may_extend_send_task_too(house: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In Celery's class, later, as tracing libraries do; in the app itself, before."""
    names: list[str] = []
    plain = Celery.send_task

    def traced(self: Celery, name: str, *args: Any, **options: Any) -> Any:
        names.append(name)
        return plain(self, name, *args, **options)

    monkeypatch.setattr(Celery, "send_task", traced)
    first = house.app.send_task("living.add", (1, 2), idempotency_key="a")
    assert house.tasks.add.apply_async((1, 2), idempotency_key="a").id == first.id
    assert names == ["living.add"] * 2
    with Celery(broker=house.app.conf.broker_url, set_as_current=False) as own:
        own.send_task = lambda name, *args, **options: names.append(f"own {name}")
        celery_integration.setup(own)
        own.send_task("living.add")
    assert names[2:] == ["own living.add"]


def test_the_current_app_can_be_set_up(house: Any) -> None:
    """Through Celery's proxy, as Django projects do."""
    with Celery(broker=house.app.conf.broker_url) as app:
        celery_integration.setup(current_app)
        first = current_app.send_task("living.add", (1, 2), idempotency_key="a")
        assert app.send_task("living.add", (1, 2), idempotency_key="a").id == first.id


def test_other_arguments_warn_and_another_task_conflicts(
    house: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first task stands; a conflict names it."""
    said: list[str] = []
    monkeypatch.setattr(logging.getLogger("kombu.sqlite"), "warning", lambda *a: said.append(a[0]))
    first = house.tasks.add.apply_async((1, 2), idempotency_key="a")
    assert house.tasks.add.apply_async((1, 2), idempotency_key="a").id == first.id
    assert said == []
    assert house.tasks.add.apply_async((1, 3), idempotency_key="a").id == first.id
    assert len(said) == 1
    assert "published again with other arguments" in said[0]
    with pytest.raises(IdempotencyConflict, match=first.id):
        house.tasks.total.apply_async(([1],), idempotency_key="a")
    assert rows(house) == 1


def test_a_result_is_kept_as_long_as_its_key_holds(house: Any) -> None:
    """Whoever sends the task again after the result's own time still gets it."""
    house.app.conf.result_expires = 0.001
    house.worker("-P", "solo")
    first = house.tasks.add.apply_async((1, 2), idempotency_key="kept")
    assert first.get(timeout=20) == 3
    house.database.execute("UPDATE task_results SET stored_at_utc = '2001-01-01 00:00:00'")
    again = house.tasks.add.apply_async((1, 2), idempotency_key="kept")
    assert (again.id, again.get(timeout=20)) == (first.id, 3)
    kept = house.database.execute("SELECT expires_at_utc FROM task_results")
    assert [row[0] for row in kept] == [None]
    house.database.execute("UPDATE task_queue SET finished_at_utc = '2001-01-01 00:00:00.000'")
    house.wait(lambda: rows(house) == 0)
    assert house.database.execute("SELECT * FROM task_results") == []


def test_a_row_of_another_program_has_the_key_as_well(house: Any) -> None:
    """Inserted by plain SQL; its task id is minted for the asker and stays."""
    house.database.execute(
        "INSERT INTO task_queue (type, payload, idempotency_key) "
        "VALUES ('living.add', '{\"x\": 4, \"y\": 5}', 'sql')"
    )
    result = house.tasks.add.apply_async((), {"x": 4, "y": 5}, idempotency_key="sql")
    again = house.tasks.add.apply_async((), {"x": 4, "y": 5}, idempotency_key="sql")
    assert result.id == again.id == house.database.get(1).task_id
    follower = house.tasks.add.apply_async((4, 5), idempotency_key="sql", task_id="mine")
    house.worker("-P", "solo")
    assert result.get(timeout=20) == 9
    assert follower.get(timeout=20) == 9
    assert house.lines() == ["sum 9"]


def test_the_key_of_a_task_put_back_may_be_taken(house: Any) -> None:
    """Then putting it back is refused, and the message names the holder."""
    first = house.tasks.add.apply_async((1, 2), idempotency_key="k", idempotency_scope="end")
    celery_integration.cancel(house.app, first.id)
    second = house.tasks.add.apply_async((1, 2), idempotency_key="k", idempotency_scope="end")
    assert second.id != first.id
    with pytest.raises(IdempotencyConflict, match=second.id):
        celery_integration.retry(house.app, first.id)
    assert house.database.get(first.id).status == "cancelled"
    celery_integration.cancel(house.app, second.id)
    assert celery_integration.retry(house.app, first.id).idempotency_key == "k"
    assert house.tasks.add.apply_async((1, 2), idempotency_key="k").id == first.id
    with pytest.raises(IdempotencyConflict, match=first.id):
        celery_integration.retry(house.app, second.id)
    celery_integration.cancel(house.app, first.id)
    third = house.tasks.add.apply_async((1, 2), idempotency_key="k")
    assert third.id not in (first.id, second.id)  # the scope came back with the key


def test_a_key_ends_with_its_seconds_and_with_its_row(house: Any) -> None:
    """Though the first task has not ended."""
    add = house.tasks.add
    first = add.apply_async((1, 2), idempotency_key="s", idempotency_scope=0.2)
    assert add.apply_async((1, 2), idempotency_key="s").id == first.id
    over = time.monotonic() + 0.25
    house.wait(lambda: time.monotonic() > over)
    second = add.apply_async((1, 2), idempotency_key="s", idempotency_scope=60)
    assert second.id != first.id
    assert add.apply_async((1, 2), idempotency_key="s").id == second.id
    house.database.execute("DELETE FROM task_queue WHERE task_id = ?", (second.id,))
    assert add.apply_async((1, 2), idempotency_key="s").id != second.id


def test_results_that_only_one_caller_gets_allow_no_key(house: Any) -> None:
    """rpc:// is refused with a sentence that says what to use."""
    house.app.conf.result_backend = "rpc://"
    house.app.__dict__.pop("backend", None)
    house.app._backend_cache = None
    house.app._local.backend = house.app._get_backend()
    with pytest.raises(ImproperlyConfigured, match="rpc://"):
        house.tasks.add.apply_async((1, 2), idempotency_key="a")
    assert rows(house) == 0


def test_a_bad_key_or_scope_is_refused(house: Any) -> None:
    """Before anything is written."""
    for options in ({"idempotency_scope": "sometimes"}, {"idempotency_scope": -1}):
        with pytest.raises(ValueError, match="idempotency_scope must be"):
            house.tasks.add.apply_async((1, 2), idempotency_key="a", **options)
    with pytest.raises(ValueError, match="idempotency_key must be text"):
        house.tasks.add.apply_async((1, 2), idempotency_key=17)
    assert rows(house) == 0


# -- with the shared worker ------------------------------------------------------------------------


def test_many_processes_publish_one_task(quiet: Any) -> None:
    """At once; all get the same id and the same result."""
    before = rows(quiet)
    scripts = [quiet.script(PUBLISHER) for _ in range(8)]
    open_gate(quiet, "go")
    said = {script.communicate(timeout=60)[0].strip() for script in scripts}
    assert len(said) == 1
    assert said.pop().endswith(" 7")
    assert rows(quiet) == before + 1
    assert quiet.lines() == ["sum 7"]


def test_keys_work_inside_a_worker(quiet: Any) -> None:
    """Published twice by a task."""
    first, second = quiet.tasks.publishes_twice.delay("inside").get(timeout=20)
    assert first == second
    assert quiet.app.AsyncResult(first).get(timeout=20) == 10
    assert quiet.lines() == ["sum 10"]


@pytest.mark.parametrize("scope", ["row", "end", 3600])
def test_a_retry_never_meets_its_own_key(quiet: Any, scope: Any) -> None:
    """In each scope; afterwards the key holds as the scope says."""
    key = f"retried {scope}"
    options = {"idempotency_key": key, "idempotency_scope": scope}
    result = quiet.tasks.flaky.apply_async((2,), **options)
    assert result.get(timeout=20) == 2
    again = quiet.tasks.flaky.apply_async((2,), **options)
    assert (again.id == result.id) is (scope != "end")
    assert again.get(timeout=20) == 2


@pytest.mark.parametrize("scope", ["row", "end"])
def test_the_key_of_a_failed_task(quiet: Any, scope: str) -> None:
    """Holds while the row exists, or is free at once, as the scope says; a cancelled one's too."""
    boom, key = quiet.tasks.boom, f"failed {scope}"
    options = {"idempotency_key": key, "idempotency_scope": scope}
    result = boom.apply_async(**options)
    with pytest.raises(ValueError, match="on purpose"):
        result.get(timeout=20)
    again = boom.apply_async(**options)
    assert (again.id == result.id) is (scope == "row")
    with pytest.raises(ValueError, match="on purpose"):
        again.get(timeout=20)
    dead = quiet.tasks.dies.apply_async(idempotency_key=f"dead {scope}", idempotency_scope=scope)
    dead.get(timeout=20, propagate=False)
    later = quiet.tasks.dies.apply_async(
        idempotency_key=f"dead {scope}", idempotency_scope=scope, countdown=3600
    )
    assert (later.id == dead.id) is (scope == "row")
    later.revoke()


def test_followers_of_a_finished_task_end_with_its_result(quiet: Any) -> None:
    """A link, a chain, a group, a chord, an id of one's own; the task ran once."""
    once, add, total = quiet.tasks.once, quiet.tasks.add, quiet.tasks.total
    assert once.delay(10).get(timeout=20) == 10
    linked = once.apply_async((10,), link=add.s(1))
    own = once.apply_async((10,), task_id="own id")
    chained = chain(once.s(10), add.s(2)).apply_async()
    grouped = group(once.s(10), once.s(10), add.s(20, 3)).apply_async()
    chorded = chord([once.s(10), add.s(30, 4)], total.s()).apply_async()
    assert own.id == "own id"
    assert linked.get(timeout=20) == own.get(timeout=20) == 10
    assert chained.get(timeout=20) == 12
    assert grouped.get(timeout=20) == [10, 10, 23]
    assert chorded.get(timeout=20) == 44
    quiet.wait(lambda: "sum 11" in quiet.lines())
    assert quiet.lines().count("once 10") == 1
    quiet.wait(lambda: settled(quiet))


def test_followers_of_a_running_task_wait_for_it(quiet: Any) -> None:
    """Not executed meanwhile; nobody holds them."""
    key = {"idempotency_key": "running"}
    first = quiet.tasks.gated.apply_async(("running", 5), **key)
    quiet.wait(lambda: quiet.lines() == ["begin running"])
    bare = quiet.tasks.gated.apply_async(("running", 5), **key)
    signature = quiet.tasks.gated.s("running", 5).set(**key)
    chained = chain(signature, quiet.tasks.add.s(1)).apply_async()
    chorded = chord([signature, quiet.tasks.add.s(1, 1)], quiet.tasks.total.s()).apply_async()
    cancelled = quiet.tasks.gated.apply_async(("running", 5), task_id="follower", **key)
    assert celery_integration.cancel(quiet.app, "follower").status == "cancelled"
    with pytest.raises(TaskRevokedError):
        cancelled.get(timeout=20)
    assert quiet.tasks.add.delay(0, 0).get(timeout=20) == 0
    assert quiet.database.get(chained.parent.id).status == "queued"
    open_gate(quiet, "running")
    assert first.id == bare.id
    assert first.get(timeout=20) == 5
    assert chained.get(timeout=20) == 6
    assert chorded.get(timeout=20) == 7
    assert quiet.lines().count("begin running") == 1


def test_followers_of_a_failing_task_fail(quiet: Any) -> None:
    """With its error; an errback is called, a chord and a chain fail."""
    key = {"idempotency_key": "failing"}
    first = quiet.tasks.boom.apply_async(**key)
    with pytest.raises(ValueError, match="on purpose"):
        first.get(timeout=20)
    own = quiet.tasks.boom.apply_async(
        task_id="failing follower", link_error=quiet.tasks.heard.s(), **key
    )
    chained = chain(quiet.tasks.boom.s().set(**key), quiet.tasks.add.s(1)).apply_async()
    chorded = chord(
        [quiet.tasks.boom.s().set(**key), quiet.tasks.add.s(1, 1)], quiet.tasks.total.s()
    ).apply_async()
    for result in (own, chained):
        with pytest.raises(ValueError, match="on purpose"):
            result.get(timeout=20)
    assert type(chorded.get(timeout=20, propagate=False)).__name__ == "ChordError"
    quiet.wait(lambda: "heard failing follower ValueError" in quiet.lines())
    row = quiet.database.get("failing follower")
    assert (row.status, row.error_message) == ("failed", "ValueError('on purpose')")


def test_followers_of_a_cancelled_task_are_cancelled(quiet: Any) -> None:
    """Its chain and its chord end as well."""
    key = {"idempotency_key": "never"}
    first = quiet.tasks.add.apply_async((9, 9), countdown=3600, **key)
    signature = quiet.tasks.add.s(9, 9).set(**key)
    own = quiet.tasks.add.apply_async((9, 9), task_id="cancelled follower", **key)
    chained = chain(signature, quiet.tasks.add.s(1)).apply_async()
    chorded = chord([signature, quiet.tasks.add.s(1, 1)], quiet.tasks.total.s()).apply_async()
    celery_integration.cancel(quiet.app, first.id)
    for result in (first, own, chained):
        with pytest.raises(TaskRevokedError):
            result.get(timeout=20)
    assert type(chorded.get(timeout=20, propagate=False)).__name__ == "ChordError"


def test_a_follower_whose_first_row_is_gone_ends(quiet: Any) -> None:
    """Failed, with the reason: nobody waits for ever."""
    key = {"idempotency_key": "pruned"}
    first = quiet.tasks.add.apply_async((8, 8), countdown=3600, **key)
    own = quiet.tasks.add.apply_async((8, 8), task_id="orphan", **key)
    quiet.database.execute("DELETE FROM task_queue WHERE task_id = ?", (first.id,))
    found = own.get(timeout=20, propagate=False)
    assert "is gone" in str(found)
    assert quiet.database.get("orphan").status == "failed"


def test_followers_of_a_first_task_without_a_result_end(quiet: Any) -> None:
    """An ignored result gives None."""
    key = {"idempotency_key": "ignored"}
    first = quiet.tasks.add.apply_async((7, 7), ignore_result=True, **key)
    own = quiet.tasks.add.apply_async((7, 7), task_id="of ignored", **key)
    assert own.get(timeout=20) is None
    assert first.state == "PENDING"
    assert quiet.lines() == ["sum 14"]
