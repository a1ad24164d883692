"""Many tasks in few transactions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, chord, group
from kombu import Producer

import celery_integration
from celery_integration import publishing
from kombu_sqlite import QueueDatabase
from kombu_sqlite.publishing import Publisher

#: Kombu 5.6 has no batches: there a block publishes each task at once.
BATCHES = hasattr(Producer, "batch")


def add(x: int, y: int) -> int:
    """The task."""
    return x + y


def total(numbers: list[int]) -> int:
    """The body of a chord."""
    return sum(numbers)


@pytest.fixture
def app(tmp_path: Any) -> Any:
    """An app on a file, set up, with a task that nobody runs."""
    url = f"sqlite:///{tmp_path}/queue.db"
    app = Celery("batches", broker=url, backend=url, set_as_current=False)
    app.task(name="add", shared=False)(add)
    app.task(name="total", shared=False)(total)
    celery_integration.setup(app)
    yield app
    app.close()


@pytest.fixture
def database(app: Any) -> Any:
    """The file, looked at from outside."""
    with QueueDatabase(app.conf.broker_url) as database:
        yield database


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many messages each transaction has published."""
    found: list[int] = []
    publish = Publisher.publish

    def counting(self: Publisher, messages: Any) -> None:
        listed = list(messages)
        publish(self, listed)
        found.append(len(listed))

    monkeypatch.setattr(Publisher, "publish", counting)
    return found


def test_a_block_is_published_together(app: Any, database: QueueDatabase, sizes: list[int]) -> None:
    """At its end, and at each full batch before."""
    with celery_integration.batch(app, max_size=4):
        sent = [app.tasks["add"].delay(n, n).id for n in range(6)]
        assert database.stats().total_tasks == (4 if BATCHES else 6)
    assert sizes == ([4, 2] if BATCHES else [1] * 6)
    assert {task.task_id for task in database.list()} == set(sent)
    app.tasks["add"].delay(1, 1)
    assert sizes[-1] == 1
    assert sum(sizes) == 7


def test_an_exception_drops_what_is_not_written(app: Any, database: QueueDatabase) -> None:
    """What was, stays."""

    def send() -> None:
        with celery_integration.batch(app, max_size=2):
            for n in range(3):
                app.tasks["add"].delay(n, n)
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        send()
    assert database.stats().total_tasks == (2 if BATCHES else 3)


def test_a_group_needs_no_block(
    app: Any, database: QueueDatabase, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a chord's header; of what a generator makes, the first does not wait for more."""
    monkeypatch.setattr(publishing, "_SLOW_S", 3600.0)
    group(app.tasks["add"].s(n, n) for n in range(100)).apply_async()
    assert sizes == ([1, 64, 35] if BATCHES else [1] * 100)
    sizes.clear()
    chord([app.tasks["add"].s(n, n) for n in range(10)], app.tasks["total"].s()).apply_async()
    assert sizes == ([10] if BATCHES else [1] * 10)
    assert database.stats().queued_tasks == 110


def test_what_a_slow_generator_makes_is_written_meanwhile(
    app: Any, database: QueueDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers begin with a chord's header while it grows; Celery looks two tasks ahead at most."""
    monkeypatch.setattr(publishing, "_SLOW_S", 0.0)
    written: list[int] = []

    def make() -> Iterator[Any]:
        for n in range(6):
            written.append(database.stats().total_tasks)
            yield app.tasks["add"].s(n, n)

    chord(make(), app.tasks["total"].s()).apply_async()
    assert 0 < written[2] < written[5]
    assert database.stats().total_tasks == 6


def test_a_generator_may_wait_for_a_task_that_it_sends(app: Any, database: QueueDatabase) -> None:
    """That one is in the file when ``delay`` returns, whatever the group has collected."""
    states: list[str] = []

    def make() -> Iterator[Any]:
        for n in range(3):
            sent = app.tasks["add"].delay(n, n)
            states.extend(task.status for task in database.list() if task.task_id == sent.id)
            yield app.tasks["add"].s(n, n)

    group(make()).apply_async()
    assert states == ["queued"] * 3
    assert database.stats().total_tasks == 6


def test_a_group_that_chose_its_producer_keeps_it(app: Any, sizes: list[int]) -> None:
    """Whoever gives one publishes by it."""
    with app.producer_or_acquire() as producer:
        group(app.tasks["add"].s(n, n) for n in range(3)).apply_async(producer=producer)
    assert sizes == [1, 1, 1]


def test_a_group_of_another_app_is_left_alone() -> None:
    """Also after this process has set one up."""
    app = Celery("elsewhere", broker="memory://", set_as_current=False)
    app.task(name="add", shared=False)(add)
    result = group(app.tasks["add"].s(n, n) for n in range(3)).apply_async()
    assert len(result.results) == 3
    app.close()


def test_a_key_twice_in_a_block_is_one_task_and_a_follower(
    app: Any, database: QueueDatabase
) -> None:
    """The first one's id cannot be the answer before it is written."""
    with celery_integration.batch(app):
        first = app.tasks["add"].apply_async((1, 2), idempotency_key="k")
        second = app.tasks["add"].apply_async((1, 2), idempotency_key="k")
    assert first.id != second.id
    follower, followed = database.list()
    assert (followed.task_id, follower.task_id) == (first.id, second.id)
    assert follower.follows == followed.id


def test_a_block_collects_for_its_own_app_alone(app: Any, tmp_path: Any) -> None:
    """A task of another app goes to that app's broker."""
    url = f"sqlite:///{tmp_path}/other.db"
    other = Celery("other", broker=url, set_as_current=False)
    other.task(name="add", shared=False)(add)
    celery_integration.setup(other)
    with celery_integration.batch(app):
        app.tasks["add"].delay(1, 1)
        other.tasks["add"].delay(2, 2)
        with celery_integration.batch(other):
            other.tasks["add"].delay(3, 3)
        app.tasks["add"].delay(4, 4)
    other.close()
    with QueueDatabase(app.conf.broker_url) as mine, QueueDatabase(url) as theirs:
        assert (mine.stats().total_tasks, theirs.stats().total_tasks) == (2, 2)
