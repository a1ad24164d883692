"""Results that somebody has damaged in the file: their readers hear of it, nobody else does."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import SecurityError
from celery.result import AsyncResult, GroupResult
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from kombu.exceptions import ContentDisallowed, DecodeError

from celery_integration.waiting import watcher_of
from kombu_sqlite import QueueDatabase
from tests.traps import Trap

DAMAGED = [
    "",
    "{",
    "5",
    "[]",
    "null",
    '"text"',
    "{}",
    '{"status": "SUCCESS"}',
    '{"status": [], "result": 1}',
    '{"status": "FAILURE", "result": 5}',
    '{"status": "FAILURE", "result": {"exc_type": 5}}',
    "[" * 20_000,
    "9" * 10_000,
    b"\xff\xfe",
    b"",
    5,
    2.5,
]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One whose results are in a file of their own."""
    folder = tmp_path_factory.mktemp("results")
    made = Celery("damaged", broker="memory://", set_as_current=False)
    made.conf.update(result_backend=f"sqlite:///{folder}/results.db", result_expires=None)
    return made


def put(app: Any, task_id: str, meta: Any, status: str = "'SUCCESS'") -> None:
    """Store a result as another program would; the state is an SQL expression."""
    value = "CAST(? AS TEXT)" if meta == b"\xff\xfe" else "?"
    with QueueDatabase(app.backend.store.database.path) as database:
        database.execute("DELETE FROM task_results WHERE task_id = ?", (task_id,))
        database.execute(
            f"INSERT INTO task_results (task_id, status, meta) VALUES (?, {status}, {value})",
            (task_id, meta),
        )


@pytest.mark.parametrize("meta", DAMAGED, ids=lambda meta: repr(meta)[:20])
@pytest.mark.parametrize("status", ["'SUCCESS'", "CAST(x'ff' AS TEXT)"])
def test_who_reads_a_damaged_result_hears_of_it(app: Any, meta: Any, status: str) -> None:
    """By asking for the state or by waiting, at once; others get theirs."""
    put(app, "bad", meta, status)
    app.backend.store_result("good", 42, "SUCCESS")
    bad, good = AsyncResult("bad", app=app), AsyncResult("good", app=app)
    with pytest.raises(DecodeError):
        _ = bad.state
    with pytest.raises(DecodeError):
        bad.get(timeout=10)
    assert good.get(timeout=10) == 42


@given(st.binary() | st.text(st.characters(exclude_categories=["Cs"])) | st.integers(-9, 9))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example(b"")
def test_whatever_is_stored_is_a_result_or_a_decode_error(app: Any, meta: Any) -> None:
    """Never another exception."""
    put(app, "any", meta)
    try:
        found = app.backend.get_task_meta("any")
    except DecodeError:
        return
    assert {"status", "result"} <= found.keys()


@pytest.mark.parametrize("many", [1, 100])
@pytest.mark.parametrize("column", ["task_id", "status", "meta"])
def test_a_result_nobody_can_read_keeps_no_other_from_its_waiter(
    app: Any, column: str, many: int
) -> None:
    """It is stored while this process waits for others, few or many of them."""
    names = [f"{column}-{many}-{number}" for number in range(many)]
    results = [AsyncResult(name, app=app) for name in names]
    begun: list[bool] = []
    watcher = watcher_of(app.backend.store)
    values = {"task_id": f"'{column}-{many}-bad'", "status": "'SUCCESS'", "meta": "'{}'"}
    values[column] = "CAST(x'ff' AS TEXT)"

    def store() -> None:
        with QueueDatabase(app.backend.store.database.path) as database:
            database.execute(
                f"INSERT OR REPLACE INTO task_results ({', '.join(values)}) "
                f"VALUES ({', '.join(values.values())})"
            )
            for name in names:
                app.backend.store_result(name, name, "SUCCESS")

    def when_waiting() -> None:
        if not begun:
            begun.append(True)
            store()

    waiting = app.backend.wait_for_many(names, 10, when_waiting)
    assert sorted(task_id for task_id, _ in waiting) == sorted(names)
    assert [result.get(timeout=10) for result in results] == names
    assert watcher is watcher_of(app.backend.store)


def test_a_damaged_group_is_a_decode_error(app: Any) -> None:
    """Whatever is wrong with it."""
    with QueueDatabase(app.backend.store.database.path) as database:
        for number, meta in enumerate(DAMAGED):
            database.execute(
                "INSERT INTO group_results (group_id, meta) VALUES (?, ?)", (f"g{number}", meta)
            )
    for number in range(len(DAMAGED)):
        with pytest.raises(DecodeError):
            GroupResult.restore(f"g{number}", app=app)


@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_a_pickled_result_is_loaded_by_nobody_who_does_not_accept_it(
    app: Any, tmp_path: Path, serializer: str
) -> None:
    """Also where this process pickles its own results, but accepts none."""
    other = Celery("other", broker="memory://", set_as_current=False)
    other.conf.update(
        result_backend=app.conf.result_backend,
        result_serializer=serializer,
        accept_content=["json"],
    )
    put(app, "trap", pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises((ContentDisallowed, DecodeError)):
        other.AsyncResult("trap").get(timeout=5)
    assert not (tmp_path / "sprung").exists()


def test_a_result_cannot_name_a_class_to_call(app: Any, tmp_path: Path) -> None:
    """What a stored failure says it is must be an exception."""
    meta = {
        "status": "FAILURE",
        "result": {"exc_type": "mkdir", "exc_module": "os", "exc_message": [str(tmp_path / "x")]},
    }
    put(app, "call", json.dumps(meta))
    with pytest.raises(SecurityError):
        _ = AsyncResult("call", app=app).result
    assert not (tmp_path / "x").exists()
