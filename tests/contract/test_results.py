"""Results, groups and waits in the file, without Celery."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from kombu_sqlite import Options, QueueBusyError, ResultWatcher, Store, Waiter, open_store

READY = frozenset({"SUCCESS", "FAILURE", "REVOKED"})


@pytest.fixture
def store(queue_path: str) -> Iterator[Store]:
    """The file's store."""
    opened = open_store(Options.load(queue_path))
    yield opened
    opened.release()


@pytest.fixture
def watcher(store: Store) -> ResultWatcher:
    """What waits in this process."""
    return store.new_watcher(READY.__contains__)


class Caller:
    """Waits for one task; keeps what it was told."""

    def __init__(self, watcher: ResultWatcher, task_id: str, talkative: bool = False) -> None:
        self.found: list[Any] = []
        self.changed: list[Any] = []
        self.woken = threading.Event()
        self.watcher = watcher
        self.waiter = Waiter(task_id, self._found, self._changed if talkative else None)
        watcher.add([self.waiter])

    def hears(self, times: int) -> bool:
        """Wait until it has been told so often of a state that is not final."""
        return self.watcher.wait(self.woken, lambda: len(self.changed) >= times, 10)

    def finds(self) -> bool:
        """Wait for the end; it watches for all the others meanwhile."""
        return self.watcher.wait(self.woken, lambda: bool(self.found), 10)

    def _found(self, status: str, payload: Any) -> None:
        self.found.append((status, payload))
        self.woken.set()

    def _changed(self, status: str, payload: Any) -> None:
        self.changed.append((status, payload))
        self.woken.set()


def test_a_newer_state_takes_the_place_of_an_older_one(store: Store) -> None:
    """Whatever both are; with a higher sequence number."""
    results = store.results
    for status in ("STARTED", "PROGRESS", "RETRY", "FAILURE", "REVOKED", "SUCCESS"):
        before = results.last_seq()
        assert results.store("a", status, status.lower(), None)
        assert results.get("a") == (status, status.lower())
        assert [row[1:] for row in results.since(before)] == [("a", status)]
    assert results.get("b") is None


@pytest.mark.parametrize("status", ["STARTED", "FAILURE", "SUCCESS", "REVOKED"])
def test_a_success_stays(store: Store, status: str) -> None:
    """Until it is forgotten."""
    assert store.results.store("a", "SUCCESS", "first", None)
    assert not store.results.store("a", status, "second", None)
    assert store.results.get("a") == ("SUCCESS", "first")
    store.results.forget("a")
    assert store.results.get("a") is None
    assert store.results.store("a", status, "third", None)


@pytest.mark.parametrize(
    "meta", ["text", "", b"\x00\xff bytes", "\N{SNOWMAN} \x00 more", "7", "{}"]
)
def test_a_payload_comes_back_as_it_was(store: Store, meta: Any) -> None:
    """Text as text, bytes as bytes, to the last of them."""
    store.results.store("a", "SUCCESS", meta, None)
    store.results.store_group("g", meta, None)
    assert store.results.get("a") == ("SUCCESS", meta)
    assert store.results.get_group("g") == meta


def test_what_has_expired_is_gone(store: Store) -> None:
    """At once for readers, later from the file; an expired success makes way."""
    results = store.results
    results.store("a", "SUCCESS", "old", 0.0)
    results.store_group("g", "old", 0.0)
    results.store("b", "SUCCESS", "kept", 60.0)
    results.store("c", "FAILURE", "for ever", None)
    assert results.get("a") is None
    assert results.get_group("g") is None
    assert results.store("a", "STARTED", "new", None)
    assert results.get("a") == ("STARTED", "new")
    results.store("d", "SUCCESS", "old", 0.0)
    assert results.delete_expired() == 2
    assert results.delete_expired() == 0
    assert [results.get(name) is not None for name in "abcd"] == [True, True, True, False]


def test_a_group_is_stored_anew_and_forgotten(store: Store) -> None:
    """The last one counts."""
    store.results.store_group("g", "first", None)
    store.results.store_group("g", "second", 60.0)
    assert store.results.get_group("g") == "second"
    store.results.forget_group("g")
    assert store.results.get_group("g") is None


def test_a_result_stored_in_a_transaction_shares_its_fate(store: Store) -> None:
    """Undone with it; and nobody is told of what did not happen."""
    with suppress(ZeroDivisionError), store.database.transaction():
        store.results.store("a", "SUCCESS", "never", None)
        raise ZeroDivisionError
    assert store.results.get("a") is None


def test_a_waiter_is_told_once(store: Store, watcher: ResultWatcher) -> None:
    """Of the end; also one that comes when all is over."""
    early = Caller(watcher, "a")
    store.results.store("a", "STARTED", "begun", None)
    store.results.store("a", "SUCCESS", "done", None)
    assert early.finds()
    late = Caller(watcher, "a")
    assert watcher.wait(late.woken, lambda: bool(late.found), 0)
    assert early.found == late.found == [("SUCCESS", "done")]
    assert early.changed == []


def test_a_talkative_waiter_hears_of_every_state(store: Store, watcher: ResultWatcher) -> None:
    """Each once, in order, as long as they do not follow at once; others hear of the end alone."""
    caller, other = Caller(watcher, "a", talkative=True), Caller(watcher, "a")
    for step in range(3):
        store.results.store("a", "PROGRESS", str(step), None)
        assert caller.hears(step + 1)
    store.results.store("a", "FAILURE", "end", None)
    assert caller.finds()
    assert other.finds()
    assert caller.changed == [("PROGRESS", str(step)) for step in range(3)]
    assert caller.found == other.found == [("FAILURE", "end")]
    assert other.changed == []


def test_a_lost_note_is_made_up_for(store: Store, watcher: ResultWatcher) -> None:
    """Somebody else's note took its place: the net finds the result."""
    caller = Caller(watcher, "a")
    number = 8192 + 4000  # nobody's bell
    store.board.wait_no_more(caller.waiter.place, watcher._bell.number)  # type: ignore[union-attr]
    store.board.wait_for("a", number)
    store.results.store("a", "SUCCESS", "done", None)
    assert caller.finds()


def test_many_waiters_find_theirs(store: Store, watcher: ResultWatcher) -> None:
    """More than are looked up one by one; stored before, meanwhile and in one transaction."""
    names = [f"task-{number}" for number in range(500)]
    for name in names[:100]:
        store.results.store(name, "SUCCESS", name, None)
    callers = [Caller(watcher, name, talkative=True) for name in names]
    store.results.store(names[250], "STARTED", "begun", None)
    for name in names[100:300]:
        store.results.store(name, "SUCCESS", name, None)
    with store.database.transaction():
        for name in names[300:]:
            store.results.store(name, "FAILURE", name, None)
    for caller, name in zip(callers, names, strict=True):
        assert caller.finds()
        assert [payload for _, payload in caller.found] == [name]


def test_a_result_of_long_ago_is_found(store: Store, watcher: ResultWatcher) -> None:
    """By whoever comes late: while another thread watches, and after it, though many wait."""
    names = [f"task-{number}" for number in range(100)]
    first, last, *others = (Caller(watcher, name) for name in names)
    thread = threading.Thread(target=first.finds)
    thread.start()
    store.results.store("over", "SUCCESS", "done", None)
    store.results.store(names[2], "SUCCESS", "", None)
    assert others[0].finds()  # so what was stored so far has been gone through
    assert Caller(watcher, "over").finds()
    store.results.store(names[0], "SUCCESS", "", None)
    thread.join(10)
    assert not watcher._watch.locked()
    late = Caller(watcher, "over")
    assert watcher.wait(late.woken, lambda: bool(late.found), 0)
    assert not watcher.wait(last.woken, lambda: bool(last.found), 0)


def test_a_look_that_fails_is_made_again(
    store: Store, watcher: ResultWatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among many: what it had not come to is not taken for seen."""
    callers = [Caller(watcher, f"task-{number}") for number in range(100)]
    assert not watcher.wait(callers[0].woken, lambda: False, 0)
    store.results.store("task-0", "SUCCESS", "done", None)
    get_many = store.results.get_many
    failures = [QueueBusyError("locked")]

    def fail_once(task_ids: Any) -> Any:
        if failures:
            raise failures.pop()
        return get_many(task_ids)

    monkeypatch.setattr(store.results, "get_many", fail_once)
    assert callers[0].finds()
    assert failures == []


def test_a_callback_that_fails_harms_nobody(
    store: Store, watcher: ResultWatcher, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged; the others are told."""

    def fail(status: str, payload: Any) -> None:
        raise ZeroDivisionError

    watcher.add([Waiter("a", fail)])
    caller = Caller(watcher, "a")
    store.results.store("a", "SUCCESS", "done", None)
    assert caller.finds()
    assert "What waited for the result of a failed." in caplog.text


def test_who_waits_no_more_leaves_no_note(store: Store, watcher: ResultWatcher) -> None:
    """On the board, that somebody rings for nothing."""
    callers = [Caller(watcher, f"task-{number}") for number in range(200)]
    for caller in callers:
        watcher.discard(caller.waiter)
        watcher.discard(caller.waiter)
    assert watcher._places == watcher._waiting == {}
    assert not any(store.board.flags()[16388:])


def test_a_closed_watcher_leaves_no_bell(store: Store, wait_until: Callable[..., Any]) -> None:
    """Whoever waits then is let go by its timeout; a new watcher is none the worse."""
    folder = Path(store.database.path).parent
    closed = store.new_watcher(READY.__contains__)
    left = Caller(closed, "a")
    thread = threading.Thread(target=closed.wait, args=(left.woken, lambda: False, 0.3))
    thread.start()
    wait_until(closed._watch.locked)
    closed.close()
    assert not list(folder.glob("*-bell-*"))
    thread.join(10)
    assert not thread.is_alive()
    again = Caller(store.new_watcher(READY.__contains__), "a")
    store.results.store("a", "SUCCESS", "done", None)
    assert again.finds()
    assert left.found == []
    assert Caller(closed, "a").found == [("SUCCESS", "done")]


def test_the_watch_goes_to_another_thread(
    store: Store, watcher: ResultWatcher, wait_until: Callable[..., Any]
) -> None:
    """When who watched has its result, or gives up: nobody is left to the net, or to nobody."""
    callers = [Caller(watcher, f"task-{number}") for number in range(20)]

    def wait(caller: Caller) -> None:
        watcher.wait(caller.woken, lambda: bool(caller.found), 60)

    threads = [threading.Thread(target=wait, args=(caller,)) for caller in callers]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(watcher._asleep) == len(threads))
    for number in reversed(range(20)):
        store.results.store(f"task-{number}", "SUCCESS", str(number), None)
        threads[number].join(20)
        assert callers[number].found == [("SUCCESS", str(number))]
    assert not watcher.wait(threading.Event(), lambda: False, 0.01)
    assert watcher._asleep == []
    assert not watcher._watch.locked()
