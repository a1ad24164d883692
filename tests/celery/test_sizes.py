"""Large results and large canvas through one worker; every task counted, none run twice."""

from __future__ import annotations

from typing import Any

import pytest
from celery import chain, chord, group

GENEROUS_S = 100


@pytest.fixture(scope="module")
def big(make_station: Any) -> Any:
    """A worker whose results are in the broker's file."""
    return make_station("results_app", "-c", "2")


@pytest.fixture(autouse=True)
def current(big: Any) -> None:
    """Celery 5.6 makes some of a canvas's signatures for the current app."""
    big.app.set_current()


def rows_of(lab: Any, type: str) -> list[tuple[Any, ...]]:
    """Status, attempts and number of a type's rows, once all have ended."""
    lab.wait(lambda: lab.database.stats().processing_tasks == 0)
    found = lab.database.execute(
        "SELECT status, attempts, count(*) FROM task_queue WHERE type = ? GROUP BY 1, 2",
        (f"results_app.{type}",),
    )
    return [tuple(row) for row in found]


def test_a_result_of_ten_megabytes(big: Any) -> None:
    """Comes back whole."""
    value = big.tasks.big.delay(10_000_000).get(timeout=GENEROUS_S)
    assert value == "x" * 10_000_000


def test_a_chain_of_a_hundred(big: Any) -> None:
    """Each link adds one; each has its own result."""
    last = chain(big.tasks.add.s(0, 1), *(big.tasks.add.s(1) for _ in range(99))).apply_async()
    assert last.get(timeout=GENEROUS_S) == 100
    assert last.parent.get(timeout=GENEROUS_S) == 99
    assert rows_of(big, "add") == [("completed", 1, 100)]


def test_a_group_of_five_thousand(big: Any) -> None:
    """Its results are in order."""
    result = group(big.tasks.identity.s(number) for number in range(5000)).apply_async()
    assert result.get(timeout=GENEROUS_S) == list(range(5000))
    assert rows_of(big, "identity") == [("completed", 1, 5000)]


def test_two_hundred_tasks_that_retry_twice_each(big: Any) -> None:
    """A row each, three runs each; as parts of a chord none is counted more than once."""
    header = [big.tasks.retrying.s(number, times=2) for number in range(200)]
    assert chord(header, big.tasks.total.s())().get(timeout=GENEROUS_S) == 19900
    assert rows_of(big, "retrying") == [("completed", 3, 200)]
    assert rows_of(big, "total") == [("completed", 1, 1)]
