"""Records, statements, the library's version, the errors' translation."""

from __future__ import annotations

import json
from datetime import datetime, timezone

import apsw
import pytest

from kombu_sqlite import sql
from kombu_sqlite.database import ensure_library_safe
from kombu_sqlite.errors import (
    QueueBusyError,
    QueueDatabaseError,
    QueueDiskError,
    QueueLocationError,
    QueueSchemaError,
)
from kombu_sqlite.models import QueueStats, Record, Task, TaskLog, Worker
from kombu_sqlite.native import Thread, Waker, select_readable
from kombu_sqlite.translating import translate


@pytest.mark.parametrize("version", ["3.51.3", "3.51.10", "3.52.0", "4.0.0", "3.50.7", "3.44.6"])
def test_libraries_with_the_fix_are_accepted(version: str) -> None:
    """The fixed branches count."""
    ensure_library_safe(version)


@pytest.mark.parametrize("version", ["3.51.2", "3.50.6", "3.44.5", "3.45.3", "3.40.1", "3.7.0"])
def test_libraries_that_lose_rows_are_refused(version: str) -> None:
    """With what to install."""
    with pytest.raises(QueueSchemaError, match="install a newer apsw"):
        ensure_library_safe(version)


@pytest.mark.parametrize(
    ("raised", "becomes"),
    [
        (apsw.BusyError(""), QueueBusyError),
        (apsw.LockedError(""), QueueBusyError),
        (apsw.FullError(""), QueueDiskError),
        (apsw.IOError(""), QueueDiskError),
        (apsw.NotADBError(""), QueueLocationError),
        (apsw.ReadOnlyError(""), QueueLocationError),
        (apsw.CantOpenError(""), QueueLocationError),
        (apsw.PermissionsError(""), QueueLocationError),
        (apsw.AuthError(""), QueueLocationError),
        (apsw.CorruptError(""), QueueSchemaError),
        (apsw.SQLError("syntax"), QueueDatabaseError),
    ],
)
def test_every_error_of_sqlite_becomes_one_of_ours(
    raised: apsw.Error, becomes: type[QueueDatabaseError]
) -> None:
    """It names the file."""
    error = translate(raised, "/q.db")
    assert type(error) is becomes
    assert "/q.db" in str(error)


def test_a_record_survives_to_dict_and_back() -> None:
    """Times included."""
    when = datetime(2026, 11, 24, 8, 0, 0, 123000, tzinfo=timezone.utc)
    task = Task(id=1, type="t", payload='{"x": 1}', created_at_utc=when, region="eu")
    assert task.to_dict()["created_at_utc"] == "2026-11-24 08:00:00.123"
    assert Task.from_dict(task.to_dict()) == task
    assert Task.from_dict({**task.to_dict(), "created_at_utc": "2026-11-24T08:00:00.123Z"}) == task


def test_unknown_columns_are_passed_over() -> None:
    """A newer file may have more."""
    assert Worker.from_dict({"worker_id": "w", "capabilities": "{}", "new": 1}).worker_id == "w"


def test_json_columns_read_as_dictionaries() -> None:
    """What is no object is an empty one."""
    assert Task(payload='{"x": 1}', compatibility="[]").get_payload_dict() == {"x": 1}
    assert Task(payload="nonsense", compatibility="[]").get_compatibility_dict() == {}
    assert TaskLog(details=None).get_details_dict() == {}
    assert Worker(capabilities='{"gpu": 1}').get_capabilities_dict() == {"gpu": 1}


@pytest.mark.parametrize("record", [Task, Worker, TaskLog, QueueStats])
def test_a_record_of_defaults_is_json(record: type[Record]) -> None:
    """And nothing of it is lost by going through JSON."""
    first = record()
    assert record.from_dict(json.loads(json.dumps(first.to_dict()))) == first


def test_records_cannot_be_changed() -> None:
    """They say what the row was, not what it should be."""
    task = Task()
    with pytest.raises(AttributeError):
        task.status = "completed"  # type: ignore[misc]


def test_what_is_no_time_is_kept_in_the_record() -> None:
    """Somebody else wrote it; a person looking at the row has to see it."""
    assert Task.from_dict({"run_after_utc": "soon"}).run_after_utc == "soon"


def test_migrations_are_numbered_without_a_gap() -> None:
    """They are applied in that order."""
    numbers = [version for version, _, _ in sql.migrations()]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_an_unknown_statement_is_an_error() -> None:
    """At the place that asks for it."""
    with pytest.raises(KeyError):
        sql.statement("no_such_statement")


def test_a_statement_is_kept_without_its_heading() -> None:
    """What stands before the first name is about the file."""
    known: dict[str, str] = {}
    text = "-- the file\n-- name: get_it\n-- Gets it.\nSELECT 1;\n\n-- name: a\n-- B.\nC;\n"
    sql.load_statements(text, known, "x.sql")
    assert known == {"get_it": "SELECT 1", "a": "C"}


def test_a_statement_defined_twice_is_refused() -> None:
    """In whichever file."""
    known = {"get_task": "SELECT 1"}
    with pytest.raises(ValueError, match="defined twice"):
        sql.load_statements("-- name: get_task\n-- One.\nSELECT 2;\n", known, "more.sql")


def test_a_statement_without_a_purpose_is_refused() -> None:
    """Each says what it is for."""
    with pytest.raises(ValueError, match="no purpose"):
        sql.load_statements("-- name: get_it\nSELECT 2;\n", {}, "more.sql")


def test_a_wake_up_before_the_wait_counts() -> None:
    """And is taken back by clear."""
    waker = Waker()
    waker.set()
    assert select_readable([waker.fileno()], 0) == [waker.fileno()]
    waker.clear()
    assert select_readable([waker.fileno()], 0) == []
    waker.close()


def test_a_thread_can_be_waited_for() -> None:
    """Also after it has ended."""
    waker = Waker()
    thread = Thread(lambda: select_readable([waker.fileno()], 10) and None, "test")
    thread.start()
    assert thread.join(0.01) is False
    waker.set()
    assert thread.join(10) is True
    assert thread.join(0) is True
    waker.close()
