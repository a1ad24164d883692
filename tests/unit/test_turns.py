"""Whose turn it is to write, between several processes that map one board."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest
from kombu import Connection

from kombu_sqlite import QueueBusyError
from kombu_sqlite.bells import TURN_AT, BellBoard
from kombu_sqlite.turns import Turns

LONG_AGO_NS = 50_000_000


@pytest.fixture
def board(tmp_path: Path) -> Iterator[BellBoard]:
    """What all processes map."""
    made = BellBoard(str(tmp_path / "queue.db"), 0o600)
    made.flags()
    yield made
    made.close()


@pytest.fixture
def line(board: BellBoard) -> Callable[[], Turns]:
    """One more process."""
    return lambda: Turns(board)


def test_whoever_has_waited_longest_is_next(line: Callable[[], Turns]) -> None:
    """The others are told so until it has the lock or gives up."""
    old, older, new = line(), line(), line()
    now = time.monotonic_ns()
    assert new.is_free()
    assert old.is_mine(now - LONG_AGO_NS)
    assert not new.is_free()
    assert not new.is_mine(now)
    assert older.is_mine(now - 2 * LONG_AGO_NS)
    assert not old.is_mine(now - LONG_AGO_NS)
    old.give_back(now - LONG_AGO_NS)  # not its own any more
    assert not new.is_mine(now)
    older.give_back(now - 2 * LONG_AGO_NS)
    assert new.is_free()
    assert new.is_mine(now)


def test_a_short_wait_asks_for_nothing(line: Callable[[], Turns]) -> None:
    """Most are, and each request costs the others time."""
    one = line()
    assert one.is_mine(time.monotonic_ns())
    assert one.is_free()


def test_the_request_of_a_dead_process_holds_up_nobody(
    line: Callable[[], Turns], board: BellBoard, wait_until: Callable[..., None]
) -> None:
    """Nor does one from another clock, or a torn one."""
    dead, other = line(), line()
    assert dead.is_mine(time.monotonic_ns() - LONG_AGO_NS)
    wait_until(lambda: other.is_mine(time.monotonic_ns()), 1)
    board.flags()[TURN_AT + 8 : TURN_AT + 16] = b"\xff" * 8
    assert other.is_mine(time.monotonic_ns())


def test_a_publish_waits_for_whoever_asked(broker_url: str, queue_path: str) -> None:
    """Even where the lock is free, yet not for longer than the other goes on asking."""
    with Connection(broker_url) as connection:
        connection.Producer().publish("x", routing_key="q")
        database = connection.default_channel.store.database
        database.turns.join()
        since = time.monotonic_ns() - LONG_AGO_NS
        assert database.turns.is_mine(since)
        connection.Producer().publish("x", routing_key="q")
        assert time.monotonic_ns() - since >= LONG_AGO_NS + 5_000_000
        locked = apsw.Connection(queue_path)
        locked.execute("BEGIN IMMEDIATE")
        with pytest.raises(QueueBusyError), database.transaction(wait_s=0.02):
            pass
        assert database.turns.is_free()
        locked.close()


def test_a_side_file_that_cannot_be_opened_keeps_nobody_from_writing(
    broker_url: str, queue_path: str
) -> None:
    """Turns are a courtesy: whoever cannot see them writes all the same."""
    Path(queue_path + "-bells").mkdir()
    with Connection(broker_url) as connection:
        connection.Producer().publish("x", routing_key="q")
        database = connection.default_channel.store.database
        locked = apsw.Connection(queue_path)
        locked.execute("BEGIN IMMEDIATE")
        with pytest.raises(QueueBusyError), database.transaction(wait_s=0.02):
            pass
        locked.execute("ROLLBACK")
        connection.Producer().publish("x", routing_key="q")
        assert database.turns.is_free()
        locked.close()
