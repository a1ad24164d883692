"""The result backend by itself: what Celery writes through it, and reads."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import VERSION, Celery, states
from celery.app.task import Context
from celery.backends import base
from celery.exceptions import ImproperlyConfigured, TaskRevokedError
from celery.result import GroupResult, result_from_tuple

from celery_integration.backend import SQLiteBackend
from kombu_sqlite import QueueDatabase, QueueLocationError, QueueOptionError

REDIS = "redis://localhost:6379/14"


@pytest.fixture
def make_app(tmp_path: Path) -> Callable[..., Any]:
    """Make an app whose results are in a file of their own."""

    def make(backend: str = "", **settings: Any) -> Any:
        made = Celery("results", broker="memory://", set_as_current=False)
        made.conf.update(result_backend=backend or f"sqlite:///{tmp_path}/results.db", **settings)
        made.set_current()
        return made

    return make


@pytest.fixture
def app(make_app: Callable[..., Any]) -> Any:
    """One with the default settings."""
    return make_app()


class Custom(Exception):
    """An error of a user's own."""


def raised(exc: BaseException) -> tuple[BaseException, str]:
    """Return an error with the text of its traceback, as the tracer has them."""
    return exc, f"Traceback (most recent call last):\n{exc!r}"


def test_the_scheme_is_found_by_celery(app: Any) -> None:
    """And the backend tells its URL."""
    assert isinstance(app.backend, SQLiteBackend)
    assert app.backend.as_uri().startswith("sqlite:///")
    assert app.backend.as_uri().endswith("results.db")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite:///:memory:", QueueLocationError),
        ("sqlite://host/results.db", QueueLocationError),
        ("sqlite:///", QueueLocationError),
        ("sqlite:////no/such/folder/at/all/\0/r.db", QueueLocationError),
        ("sqlite:///results.db?busy_timeout=soon", QueueOptionError),
    ],
)
def test_a_url_that_cannot_be_is_refused(
    make_app: Callable[..., Any], url: str, expected: type[Exception]
) -> None:
    """With one sentence, at the first use."""
    with pytest.raises(expected):
        make_app(url).backend.get_state("a")


@pytest.mark.parametrize("broker", ["memory://", REDIS, "amqp://", "sqlite:///{}/broker.db"])
def test_the_broker_may_be_another(tmp_path: Path, broker: str) -> None:
    """Whatever it is, and without reaching for it."""
    app = Celery("other", broker=broker.format(tmp_path), set_as_current=False)
    app.conf.result_backend = f"sqlite:///{tmp_path}/results.db"
    app.backend.mark_as_done("a", 1)
    assert app.AsyncResult("a").get(timeout=10) == 1
    assert not app.backend.is_brokers


def test_the_broker_s_file_is_opened_once(tmp_path: Path) -> None:
    """By whatever path; with the broker's options."""
    (tmp_path / "link.db").symlink_to(tmp_path / "queue.db")
    app = Celery("same", broker=f"sqlite:///{tmp_path}/queue.db?busy_timeout=1.5")
    app.conf.result_backend = f"sqlite:///{tmp_path}/link.db"
    assert app.backend.store.options.busy_timeout == 1.5
    assert app.backend.is_brokers
    with app.connection_for_write() as connection:
        assert connection.default_channel.store is app.backend.store


@pytest.mark.parametrize("backend", ["", REDIS])
@pytest.mark.filterwarnings("ignore:Call to deprecated")  # Celery's use of redis-py
def test_states_are_as_celery_s_users_know_them(make_app: Callable[..., Any], backend: str) -> None:
    """The same from this backend as from Redis."""
    if backend:
        try:
            redis.Redis.from_url(backend).ping()
        except redis.ConnectionError:
            pytest.skip("no Redis server to compare with")
    app = make_app(backend)
    store = app.backend
    names = ("new", "own", "started", "done", "failed", "custom", "revoked", "retried")
    try:
        store.store_result("own", {"step": 3}, "PROGRESS")
        store.mark_as_started("started", pid=7, hostname="w1")
        store.mark_as_done("done", {"a": [1, None]})
        store.mark_as_failure("failed", *raised(KeyError("x")))
        store.mark_as_failure("custom", *raised(Custom({"n": 1}, 2)))
        store.mark_as_revoked("revoked", "terminated")
        store.mark_as_retry("retried", *raised(ValueError("again")))
        found = {name: app.AsyncResult(name) for name in names}
        assert {name: result.state for name, result in found.items()} == {
            "new": "PENDING",
            "own": "PROGRESS",
            "started": "STARTED",
            "done": "SUCCESS",
            "failed": "FAILURE",
            "custom": "FAILURE",
            "revoked": "REVOKED",
            "retried": "RETRY",
        }
        assert found["own"].info == {"step": 3}
        assert found["started"].info == {"pid": 7, "hostname": "w1"}
        assert found["done"].get() == {"a": [1, None]}
        assert isinstance(found["done"].date_done, datetime)
        assert found["own"].date_done is None
        with pytest.raises(KeyError, match="x"):
            found["failed"].get()
        assert "KeyError('x')" in found["failed"].traceback
        assert found["failed"].get(propagate=False).args == ("x",)
        with pytest.raises(Custom) as caught:
            found["custom"].get()
        assert caught.value.args == ({"n": 1}, 2)
        with pytest.raises(TaskRevokedError, match="terminated"):
            found["revoked"].get()
        assert isinstance(found["retried"].info, ValueError)
        store.mark_as_failure("done", *raised(KeyError("late")))
        store.store_result("done", None, states.STARTED)
        assert app.AsyncResult("done").state == "SUCCESS"
        if hasattr(store, "task_result_exists"):  # Celery's own have it from 5.7 on
            assert store.task_result_exists("done")
            assert not store.task_result_exists("new")
    finally:
        for name in names:
            app.AsyncResult(name).forget()
    assert app.AsyncResult("done").state == "PENDING"


def test_extended_results_tell_of_the_task(make_app: Callable[..., Any]) -> None:
    """Name, arguments, worker, retries, queue, stamps, group and parent."""
    app = make_app(result_extended=True)
    request = Context(
        id="a",
        task="app.add",
        args=[1, 2],
        kwargs={"z": 3},
        hostname="w1@host",
        retries=2,
        delivery_info={"routing_key": "celery"},
        group="g",
        parent_id="p",
        stamped_headers=["order"],
        stamps={"order": ["17"], "other": ["x"]},
    )
    request.children.append(app.AsyncResult("child"))
    app.backend.mark_as_done("a", 6, request=request)
    result = app.AsyncResult("a")
    assert (result.name, result.args, result.kwargs) == ("app.add", [1, 2], {"z": 3})
    assert (result.worker, result.retries, result.queue) == ("w1@host", 2, "celery")
    meta = app.backend.get_task_meta("a")
    assert (meta["group_id"], meta["parent_id"], meta["order"]) == ("g", "p", ["17"])
    assert VERSION < (5, 7) or "other" not in meta  # 5.6 stores every stamp
    assert [child.id for child in result.children] == ["child"]


def test_an_ignored_result_is_not_kept(app: Any) -> None:
    """An error is, where the caller of ``mark_as_failure`` asks for it."""
    request = Context(id="a", ignore_result=True)
    app.backend.mark_as_done("a", 1, request=request)
    assert not app.backend.task_result_exists("a")
    app.backend.mark_as_failure("a", ValueError(), request=request, store_result=False)
    assert not app.backend.task_result_exists("a")
    app.backend.mark_as_failure("a", ValueError(), request=request)
    assert app.AsyncResult("a").state == "FAILURE"


@pytest.mark.parametrize("serializer", ["json", "pickle", "yaml", "msgpack"])
@pytest.mark.parametrize("compression", [None, "gzip", "bzip2"])
def test_serializers_and_compression(
    make_app: Callable[..., Any], serializer: str, compression: str | None
) -> None:
    """Values, errors and groups come back; also ten megabytes."""
    app = make_app(
        result_serializer=serializer,
        result_compression=compression,
        accept_content=["json", "pickle", "yaml", "msgpack"],
    )
    value = {"text": "\N{SNOWMAN} \x00 \ud800", "numbers": [1, 2.5, None, True]}
    if serializer in ("yaml", "msgpack"):
        value["text"] = "\N{SNOWMAN}"  # they refuse the others by themselves
    store = app.backend
    store.mark_as_done("a", value)
    store.mark_as_failure("b", *raised(Custom("x")))
    group = GroupResult("g", [app.AsyncResult("a"), app.AsyncResult("b")], app=app)
    group.save()
    assert app.AsyncResult("a").get(timeout=10) == value
    with pytest.raises(Custom):
        app.AsyncResult("b").get(timeout=10)
    assert app.GroupResult.restore("g").results == group.results
    if serializer != "yaml":
        store.mark_as_done("big", "x" * 10_000_000)
        assert len(app.AsyncResult("big").get(timeout=30)) == 10_000_000


def test_an_unknown_compression_is_refused(make_app: Callable[..., Any]) -> None:
    """By Celery itself."""
    if not hasattr(base, "compress_payload"):
        pytest.skip("result_compression has an effect from Celery 5.7 on")
    with pytest.raises(ImproperlyConfigured):
        _ = make_app(result_compression="none-such").backend


def test_a_group_is_saved_and_found(app: Any) -> None:
    """With its structure and parent; gone once it is deleted."""
    inner = GroupResult("inner", [app.AsyncResult("b")], app=app)
    outer = GroupResult("outer", [app.AsyncResult("a"), inner], app.AsyncResult("p"), app=app)
    outer.save()
    found = app.GroupResult.restore("outer")
    assert found == outer
    assert found.as_tuple() == outer.as_tuple()
    assert result_from_tuple(found.as_tuple(), app) == outer
    found.delete()
    assert app.GroupResult.restore("outer") is None


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [86400, 86400]),
        ({"result_expires": timedelta(hours=1)}, [3600, 3600]),
        ({"result_expires": 0}, [None, None]),
        ({"result_expires": None}, [None, None]),
        ({"result_expires": 50, "result_failure_expires": 7}, [50, 7]),
        ({"result_expires": 50, "result_failure_expires": timedelta(days=1)}, [50, 86400]),
    ],
)
def test_results_expire_as_the_settings_say(
    make_app: Callable[..., Any], tmp_path: Path, settings: Any, expected: list[float | None]
) -> None:
    """None and 0 keep them for ever; failures may have a period of their own."""
    app = make_app(**settings)
    app.backend.mark_as_done("a", 1)
    app.backend.mark_as_failure("b", ValueError())
    with QueueDatabase(str(tmp_path / "results.db")) as database:
        rows = database.execute(
            "SELECT round((julianday(expires_at_utc) - julianday(stored_at_utc)) * 86400) "
            "FROM task_results ORDER BY task_id"
        )
    assert [row[0] for row in rows] == expected


def test_expired_results_leave_the_file(
    make_app: Callable[..., Any], tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    """By ``cleanup``, and, where the broker is elsewhere, now and then by whoever stores."""
    app = make_app(result_expires=0.001)
    for name in "abc":
        app.backend.mark_as_done(name, 1)
    with QueueDatabase(str(tmp_path / "results.db")) as database:

        def stored() -> int:
            count: int = database.execute("SELECT count(*) FROM task_results")[0][0]
            return count

        wait_until(lambda: not any(app.backend.task_result_exists(name) for name in "abc"))
        assert stored() >= 2
        app.backend.cleanup()
        assert stored() == 0
        app.backend.mark_as_done("d", 1)
        wait_until(lambda: not app.backend.task_result_exists("d"))
        app.backend._clean_at = 0.0
        app.backend.mark_as_done("e", 1)
        assert stored() <= 1


def test_a_pickled_backend_is_the_same_again(make_app: Callable[..., Any]) -> None:
    """With its URL and its period."""
    app = make_app(result_expires=77)
    app.backend.mark_as_done("a", 1)
    again = pickle.loads(pickle.dumps(app.backend))  # noqa: S301 - our own
    assert (again.url, again.expires) == (app.backend.url, 77)
    assert again.get_result("a") == 1


def test_an_errback_runs_once_all_is_stored(app: Any) -> None:
    """In the new style it is called with request, error and traceback."""
    seen = []

    @app.task(shared=False)
    def errback(request: Any, exc: BaseException, traceback: str) -> None:
        seen.append((request.id, exc, traceback, app.AsyncResult("a").state))

    exc, trace = raised(ValueError("x"))
    request = Context(id="a", errbacks=[errback.s()], delivery_info={})
    app.backend.mark_as_failure("a", exc, trace, request=request)
    assert seen == [("a", exc, trace, "FAILURE")]


@pytest.mark.parametrize("end", ["failure", "revoked"])
def test_what_is_chained_ends_as_well(app: Any, end: str) -> None:
    """Each task of the chain that will not come gets the same end."""

    @app.task(shared=False)
    def step() -> None:
        """Is never run."""

    chain = [step.s().set(task_id=f"step-{number}") for number in range(3)]
    request = Context(id="a", chain=[dict(signature) for signature in chain])
    if end == "failure":
        app.backend.mark_as_failure("a", ValueError("x"), request=request)
    else:
        app.backend.mark_as_revoked("a", "why", request=request)
    expected = {"failure": "FAILURE", "revoked": "REVOKED"}[end]
    assert {app.AsyncResult(f"step-{n}").state for n in range(3)} == {expected}
