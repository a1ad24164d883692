"""The elected process rings for what other programs have written, which ring nobody themselves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kombu_sqlite import Options, QueueDatabase, Store, open_store
from kombu_sqlite.bells import Bell, wait_readable


@pytest.fixture
def store(queue_path: str) -> Iterator[Store]:
    """A store whose consumers have a GPU."""
    opened = open_store(Options.load(queue_path, {"capabilities": {"gpu": True}}))
    yield opened
    opened.release()


@pytest.fixture
def bell(store: Store) -> Iterator[Bell]:
    """The bell of a consumer that sleeps."""
    bell = store.new_bell()
    store.add_consumer(bell, "celery")
    bell.clear()
    bell.sleep()
    yield bell
    store.close_bell(bell)


@pytest.mark.parametrize("compatibility", ["{}", '{"gpu": true}'])
@pytest.mark.parametrize("seconds", ["-1", "+0.3"])
def test_a_sleeping_consumer_is_rung_for_what_others_wrote(
    bell: Bell, database: QueueDatabase, compatibility: str, seconds: str
) -> None:
    """Due at once or a little later; whatever it asks for that the consumer has."""
    database.execute(
        "INSERT INTO task_queue(type, payload, compatibility, run_after_utc) "
        "VALUES ('t', '{}', ?, strftime('%Y-%m-%d %H:%M:%f', 'now', ? || ' seconds'))",
        (compatibility, seconds),
    )
    assert wait_readable([bell.fileno()], 10) == [bell.fileno()]


def test_a_sleeping_consumer_is_not_rung_for_what_it_cannot_do(
    bell: Bell, database: QueueDatabase
) -> None:
    """A message that asks for something else wakes nobody; the next one does."""
    database.execute(
        "INSERT INTO task_queue(type, payload, compatibility) VALUES ('t', '{}', '{\"tpu\": true}')"
    )
    assert wait_readable([bell.fileno()], 0.5) == []
    database.execute("INSERT INTO task_queue(type, payload) VALUES ('t', '{}')")
    assert wait_readable([bell.fileno()], 10) == [bell.fileno()]
