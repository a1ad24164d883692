"""Waiting for results: who asks is told at once, however many ask, and none waits in vain."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.app.task import Context
from celery.exceptions import TimeoutError as ResultTimeout
from celery.result import GroupResult, ResultSet

from celery_integration.waiting import watcher_of
from kombu_sqlite import QueueDatabase

GENEROUS_S = 30

PROGRAM = """
import sys
from celery import Celery
app = Celery("waiter", broker="memory://", backend=sys.argv[1])
"""


@pytest.fixture
def app(tmp_path: Path) -> Any:
    """An app whose results are in a file; nobody runs its tasks."""
    backend = f"sqlite:///{tmp_path}/results.db"
    return Celery("waiting", broker="memory://", backend=backend, set_as_current=False)


def start(source: str, *arguments: str) -> subprocess.Popen[str]:
    """Start another program."""
    return subprocess.Popen(
        [sys.executable, "-c", source, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )


def in_thread(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Call in a thread; the list gets what is returned or raised."""
    got: list[Any] = []

    def run() -> None:
        try:
            got.append(call())
        except Exception as exc:  # noqa: BLE001 - the test looks at it
            got.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, got


def test_get_times_out(app: Any) -> None:
    """And leaves nobody waiting; a timeout of 0 only looks."""
    for timeout in (0, 0.01, 0.7):
        with pytest.raises(ResultTimeout):
            app.AsyncResult("a").get(timeout=timeout)
    group = ResultSet([app.AsyncResult("a"), app.AsyncResult("b")], app=app)
    app.backend.mark_as_done("a", 1)
    assert app.AsyncResult("a").get(timeout=0) == 1
    for join in (group.get, group.join):
        with pytest.raises(ResultTimeout):
            join(timeout=0.1)
    assert watcher_of(app.backend.store)._waiting == {}


def test_get_of_a_failure_raises(app: Any) -> None:
    """At once for those who wait; the value with ``propagate=False``; callbacks are called."""
    thread, got = in_thread(lambda: app.AsyncResult("a").get(timeout=GENEROUS_S))
    app.backend.mark_as_failure("a", ValueError("x"))
    thread.join(GENEROUS_S)
    assert isinstance(got[0], ValueError)
    assert isinstance(app.AsyncResult("a").get(propagate=False), ValueError)
    app.backend.mark_as_done("b", 5)
    seen: list[Any] = []
    assert app.AsyncResult("b").get(callback=lambda *args: seen.append(args)) == 5
    assert seen == [("b", 5)]


def test_a_group_is_joined_in_its_order(app: Any) -> None:
    """``join``, ``get``, ``join_native``; ``iter_native`` in the order of the ends."""
    names = [f"task-{number}" for number in range(100)]
    group = GroupResult("g", [app.AsyncResult(name) for name in names], app=app)
    waits = [
        in_thread(lambda: group.get(timeout=GENEROUS_S)),
        in_thread(lambda: ResultSet([app.AsyncResult(n) for n in names], app=app).join(GENEROUS_S)),
        in_thread(lambda: dict(GroupResult("h", group.results, app=app).iter_native())),
    ]
    for name in reversed(names):
        app.backend.mark_as_done(name, name)
    for thread, _ in waits:
        thread.join(GENEROUS_S)
    (joined,), (each,), (native,) = (got for _, got in waits)
    assert joined == each == names
    assert {task_id: meta["result"] for task_id, meta in native.items()} == {n: n for n in names}


def test_a_group_raises_the_first_failure_it_meets(app: Any) -> None:
    """Without waiting for the others; without ``propagate`` it hands all out."""
    results = [app.AsyncResult(name) for name in "abc"]
    thread, got = in_thread(lambda: GroupResult("g", results, app=app).get(timeout=GENEROUS_S))
    app.backend.mark_as_failure("b", KeyError("x"))
    thread.join(GENEROUS_S)
    assert isinstance(got[0], KeyError)
    app.backend.mark_as_done("a", 1)
    app.backend.mark_as_done("c", 3)
    first, second, third = GroupResult("g", results, app=app).get(timeout=10, propagate=False)
    assert (first, type(second), third) == (1, KeyError, 3)


def test_groups_may_hold_groups(app: Any) -> None:
    """Their values come nested."""
    inner = GroupResult("inner", [app.AsyncResult("b"), app.AsyncResult("c")], app=app)
    outer = GroupResult("outer", [app.AsyncResult("a"), inner], app=app)
    thread, got = in_thread(lambda: outer.get(timeout=GENEROUS_S))
    for name in "cba":
        app.backend.mark_as_done(name, name)
    thread.join(GENEROUS_S)
    assert got == [["a", ["b", "c"]]]


def test_empty_and_known_results_need_no_wait(app: Any) -> None:
    """An empty set; one fetched before, whose result has been forgotten since."""
    assert ResultSet([], app=app).get(timeout=1) in ([], None)
    app.backend.mark_as_done("a", 1)
    result = app.AsyncResult("a")
    assert result.get(timeout=10) == 1
    app.backend.forget("a")
    assert (result.get(timeout=1), ResultSet([result], app=app).get(timeout=1)) == (1, [1])


def test_children_are_collected(app: Any) -> None:
    """Depth by depth, with their values."""
    app.backend.store_result("leaf", 2, "SUCCESS")
    parent = app.AsyncResult("parent")
    context = Context(id="parent")
    context.children.append(app.AsyncResult("leaf"))
    app.backend.mark_as_done("parent", 1, request=context)
    assert [(node.id, value) for node, value in parent.collect(timeout=10)] == [
        ("parent", 1),
        ("leaf", 2),
    ]
    assert app.AsyncResult("parent").get_leaf() == 2


def test_then_is_called_when_the_result_is_fetched(app: Any) -> None:
    """For one result and for a group."""
    seen: list[Any] = []
    result = app.AsyncResult("a")
    result.then(lambda found: seen.append(found.id))
    group = GroupResult("g", [app.AsyncResult("a"), app.AsyncResult("b")], app=app)
    group.then(lambda found: seen.append(found.id))
    app.backend.mark_as_done("a", 1)
    app.backend.mark_as_done("b", 2)
    assert result.get(timeout=10) == 1
    assert seen == ["a"]
    assert group.get(timeout=10) == [1, 2]
    assert seen == ["a", "g"]


def test_on_message_hears_of_every_state(app: Any) -> None:
    """As users watch a task's progress; the last one is the end."""
    heard: list[Any] = []
    step = threading.Semaphore(0)

    def listen(meta: Any) -> None:
        heard.append((meta["task_id"], meta["status"], meta["result"]))
        step.release()

    thread, got = in_thread(lambda: app.AsyncResult("a").get(timeout=GENEROUS_S, on_message=listen))
    for number in range(3):
        app.backend.store_result("a", {"step": number}, "PROGRESS")
        assert step.acquire(timeout=GENEROUS_S)
    app.backend.mark_as_done("a", "end")
    thread.join(GENEROUS_S)
    assert got == ["end"]
    assert heard == [
        *(("a", "PROGRESS", {"step": number}) for number in range(3)),
        ("a", "SUCCESS", "end"),
    ]


def test_on_interval_is_called_meanwhile(app: Any) -> None:
    """So a caller can do something else, or give up."""

    def give_up() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        app.AsyncResult("a").get(timeout=GENEROUS_S, on_interval=give_up)
    assert watcher_of(app.backend.store)._waiting == {}


def test_many_threads_wait_at_once(app: Any) -> None:
    """Each for two tasks, one of them everybody's."""

    def wait_for(number: int) -> Callable[[], Any]:
        mine = GroupResult(
            f"g{number}", [app.AsyncResult(f"task-{number}"), app.AsyncResult("all")], app=app
        )
        return lambda: mine.get(timeout=GENEROUS_S)

    waits = [in_thread(wait_for(number)) for number in range(50)]
    app.backend.mark_as_done("all", "all")
    for number in reversed(range(50)):
        app.backend.mark_as_done(f"task-{number}", number)
    for thread, _ in waits:
        thread.join(GENEROUS_S)
    assert [got for _, got in waits] == [[[number, "all"]] for number in range(50)]


def test_several_processes_wait_at_once(app: Any) -> None:
    """For the same tasks, and for those of their own."""
    source = PROGRAM + (
        "print('waiting', flush=True)\n"
        "for name in sys.argv[2:]: print(app.AsyncResult(name).get(timeout=30), flush=True)\n"
    )
    programs = [start(source, app.backend.url, "all", f"own-{n}", f"all-{n % 2}") for n in range(4)]
    for program in programs:
        assert program.stdout is not None
        assert program.stdout.readline() == "waiting\n"
    for name in ["all", *(f"own-{n}" for n in range(4)), "all-0", "all-1"]:
        app.backend.mark_as_done(name, name)
    for number, program in enumerate(programs):
        out, _ = program.communicate(timeout=60)
        assert out.split() == ["all", f"own-{number}", f"all-{number % 2}"]


def test_greenlets_wait(app: Any) -> None:
    """While others run; under gevent's monkey patching."""
    source = (
        "from gevent import monkey\nmonkey.patch_all()\n"
        + PROGRAM
        + (
            "import gevent\nfrom celery_integration.waiting import watcher_of\n"
            "def wait(n):\n"
            "    return app.AsyncResult(f'task-{n}').get(timeout=30)\n"
            "waits = [gevent.spawn(wait, n) for n in range(20)]\n"
            "ticks = []\n"
            "def tick():\n"
            "    while True:\n"
            "        ticks.append(1); gevent.sleep(0.01)\n"
            "ticker = gevent.spawn(tick)\n"
            "while len(watcher_of(app.backend.store)._waiting) < 20:\n"
            "    gevent.sleep(0.01)\n"
            "ticks.clear()\n"
            "while len(ticks) < 20:\n"
            "    gevent.sleep(0.01)\n"
            "print('waiting', flush=True)\n"
            "print(sum(w.get() for w in waits), flush=True)\n"
        )
    )
    program = start(source, app.backend.url)
    assert program.stdout is not None
    assert program.stdout.readline() == "waiting\n"
    for number in range(20):
        app.backend.mark_as_done(f"task-{number}", number)
    out, _ = program.communicate(timeout=60)
    assert out.split() == ["190"]


def test_a_forked_child_waits_by_itself(app: Any) -> None:
    """Though its parent was waiting when it forked, and both are told."""
    source = PROGRAM + (
        "import os, threading, time\n"
        "from celery_integration.waiting import watcher_of\n"
        "def wait(name):\n"
        "    os.write(1, app.AsyncResult(name).get(timeout=30).encode() + b'\\n')  # whole\n"
        "thread = threading.Thread(target=wait, args=('parent',))\n"
        "thread.start()\n"
        "while not watcher_of(app.backend.store)._waiting:\n"
        "    time.sleep(0.01)\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    os.write(1, b'waiting\\n')\n"
        "    wait('child')\n"
        "    wait('parent')\n"
        "    os._exit(0)\n"
        "os.waitpid(pid, 0)\n"
        "thread.join()\n"
        "wait('child')\n"
    )
    program = start(source, app.backend.url)
    assert program.stdout is not None
    assert program.stdout.readline() == "waiting\n"
    app.backend.mark_as_done("child", "child")
    app.backend.mark_as_done("parent", "parent")
    out, _ = program.communicate(timeout=60)
    assert sorted(out.split()) == ["child", "child", "parent", "parent"]


def test_a_note_that_was_lost_costs_no_result(app: Any, wait_until: Callable[..., Any]) -> None:
    """All notes are wiped off the board: the caller finds its result by itself."""
    thread, got = in_thread(lambda: app.AsyncResult("a").get(timeout=GENEROUS_S))
    store = app.backend.store
    wait_until(lambda: watcher_of(store)._waiting)
    flags = store.board.flags()
    flags[16388:] = bytes(len(flags) - 16388)
    app.backend.mark_as_done("a", 1)
    thread.join(GENEROUS_S)
    assert got == [1]


def test_a_locked_file_delays_the_result(app: Any) -> None:
    """Whoever stores it tries until it is written; whoever waits is told then."""
    app.backend.get_state("a")
    source = (
        "import sys\nfrom kombu_sqlite import QueueDatabase\n"
        "with QueueDatabase(sys.argv[1]) as database, database.transaction():\n"
        "    print('locked', flush=True)\n    sys.stdin.readline()\n"
    )
    locker = start(source, app.backend.url.removeprefix("sqlite:///"))
    assert locker.stdout is not None
    assert locker.stdout.readline() == "locked\n"
    waiter, got = in_thread(lambda: app.AsyncResult("a").get(timeout=GENEROUS_S))
    writer, _ = in_thread(lambda: app.backend.mark_as_done("a", 1))
    with pytest.raises(ResultTimeout):
        app.AsyncResult("a").get(timeout=0.5)
    locker.communicate("\n", timeout=30)
    writer.join(GENEROUS_S)
    waiter.join(GENEROUS_S)
    assert got == [1]


def test_who_waits_follows_a_replaced_file(
    app: Any, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    """The result that is then stored in the new one is found."""
    path = tmp_path / "results.db"
    app.backend.get_state("a")
    thread, got = in_thread(lambda: app.AsyncResult("a").get(timeout=GENEROUS_S))
    wait_until(lambda: watcher_of(app.backend.store)._waiting)
    for name in ("results.db", "results.db-wal", "results.db-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    QueueDatabase(str(path)).close()
    source = PROGRAM + "app.backend.mark_as_done('a', 1)\n"
    assert start(source, app.backend.url).communicate(timeout=30)
    thread.join(GENEROUS_S)
    assert got == [1]


def test_a_process_that_waited_leaves_no_bell(tmp_path: Path) -> None:
    """It takes its bell along; what a killed one leaves the next one takes over."""
    wait = """
from celery.exceptions import TimeoutError
try: app.AsyncResult("never").get(timeout=float(sys.argv[2]))
except TimeoutError: pass
"""
    backend = f"sqlite:///{tmp_path}/results.db"

    def bells() -> list[str]:
        return [path.name for path in tmp_path.glob("*-bell-*")]

    killed = start(PROGRAM + "print(flush=True)" + wait, backend, "60")
    try:
        deadline = time.monotonic() + GENEROUS_S
        while not bells():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        killed.kill()
        killed.communicate()
    left = bells()
    assert len(left) == 1
    second = start(PROGRAM + wait, backend, "0.1")
    assert second.communicate()[0] == ""
    assert second.returncode == 0
    assert bells() == []
