"""Fixtures for every test: a path and a URL of its own, and waiting on conditions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import kombu_sqlite


@pytest.fixture
def queue_path(tmp_path: Path) -> str:
    """A path at which nothing exists yet."""
    return str(tmp_path / "queue.db")


@pytest.fixture
def broker_url(queue_path: str) -> str:
    """The URL of that path."""
    return f"sqlite:///{queue_path}"


@pytest.fixture
def database(queue_path: str) -> Iterator[kombu_sqlite.QueueDatabase]:
    """The queue at that path, closed at the end."""
    with kombu_sqlite.QueueDatabase(queue_path) as opened:
        yield opened


@pytest.fixture(autouse=True)
def sound_upkeep(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail a test in which a duty of the upkeep's thread fails for a reason of its own.

    It is logged and tried again, so nothing else would tell. A disk or a lock is no such reason.
    """
    yield
    for record in caplog.get_records("call"):
        error = record.exc_info[1] if record.exc_info else None
        if record.getMessage().startswith("Upkeep of ") and not isinstance(
            error, kombu_sqlite.QueueDatabaseError
        ):
            pytest.fail(f"{record.getMessage()}: {error!r}")


@pytest.fixture
def wait_until() -> Callable[..., Any]:
    """Wait until a condition holds and return its value, or fail after a deadline."""

    def wait(condition: Callable[[], Any], timeout_s: float = 10.0) -> Any:
        deadline = time.monotonic() + timeout_s
        while not (value := condition()):
            if time.monotonic() > deadline:
                pytest.fail(f"not so within {timeout_s:g} s")
            time.sleep(0.01)
        return value

    return wait
