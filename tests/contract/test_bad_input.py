"""Bad places, bad moments, bad rows: one clear error, nothing lost, the good goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest
from kombu import Connection

from kombu_sqlite import (
    QueueDatabase,
    QueueLocationError,
    QueueReplacedError,
    QueueSchemaError,
    location,
)

Wait = Callable[..., Any]


def run(script: str) -> str:
    """Run a script in a process of its own; return what it prints."""
    text = f"import sys; sys.path[:0] = {sys.path!r}\n{script}"
    done = subprocess.run([sys.executable, "-c", text], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.mark.parametrize("path", [":memory:", "file:q.db?mode=memory"])
def test_a_queue_in_memory_is_refused(path: str) -> None:
    """Other processes would not see it."""
    with pytest.raises(QueueLocationError, match="plain file path"):
        QueueDatabase(path).initialize_schema()


def test_a_directory_is_refused(tmp_path: Path) -> None:
    """With what to name instead."""
    with pytest.raises(QueueLocationError, match="is a directory; name a file inside"):
        QueueDatabase(str(tmp_path)).initialize_schema()


def test_a_special_file_is_refused(tmp_path: Path) -> None:
    """A FIFO is no queue of this kind."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(QueueLocationError, match="not a plain file"):
        QueueDatabase(str(tmp_path / "fifo")).initialize_schema()


@pytest.mark.parametrize("what", ["folder", "file"])
def test_missing_permissions_are_refused(tmp_path: Path, what: str) -> None:
    """Without the rights of root; the sentence says what to change."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    path = folder / "q.db"
    QueueDatabase(str(path)).initialize_schema()
    os.chmod(folder, 0o755 if what == "folder" else 0o777)
    os.chmod(path, 0o666 if what == "folder" else 0o400)
    for parent in tmp_path.parents:
        if parent != Path("/") and os.stat(parent).st_uid == os.getuid():
            os.chmod(parent, os.stat(parent).st_mode | 0o011)
    os.chmod(tmp_path, 0o755)
    script = f"""
import os
import apsw, kombu_sqlite
from kombu_sqlite import QueueDatabase, QueueLocationError
if os.getuid() == 0: os.setuid(65534)
try: QueueDatabase({str(path)!r}).initialize_schema()
except QueueLocationError as exc: print(exc)
"""
    assert "No permission" in run(script)


def test_a_network_file_system_is_refused(queue_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite loses data there."""
    monkeypatch.setattr(location, "file_system_of", lambda folder: "nfs4")
    with pytest.raises(QueueLocationError, match="network file system"):
        QueueDatabase(queue_path).initialize_schema()


def test_the_file_system_of_a_folder_is_known(tmp_path: Path) -> None:
    """On Linux."""
    assert location.file_system_of(str(tmp_path)) not in (*location.NETWORK_FILE_SYSTEMS, None)


def test_an_old_library_is_refused(queue_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would lose committed rows."""
    monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: "3.51.2")
    with pytest.raises(QueueSchemaError, match="install a newer apsw"):
        QueueDatabase(queue_path).initialize_schema()


def test_another_library_in_this_process_is_refused(queue_path: str) -> None:
    """Each would drop the other's locks."""
    script = f"""
import sqlite3
c = sqlite3.connect({queue_path!r}); c.execute('CREATE TABLE t (x)'); c.commit()
from kombu_sqlite import QueueDatabase, QueueLocationError
try: QueueDatabase({queue_path!r}).initialize_schema()
except QueueLocationError as exc: print(exc)
"""
    assert "Another SQLite library" in run(script)


def test_a_full_disk_raises_and_loses_nothing(queue_path: str) -> None:
    """What was published before is there; publishing works again once there is room."""
    script = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from kombu_sqlite import QueueDatabase, QueueDiskError
db = QueueDatabase({queue_path!r})
done = 0
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
try:
    for n in range(1000): db.enqueue('t', {{'n': 'x' * 3000}}); done += 1
except QueueDiskError as exc: print('full' if 'disk' in str(exc) else exc)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
db.enqueue('t')
print(db.stats().queued_tasks - done, done > 0)
"""
    assert run(script).split() == ["full", "1", "True"]
    with QueueDatabase(queue_path) as database:
        assert database.execute("PRAGMA integrity_check")[0][0] == "ok"


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_a_file_that_is_gone_is_noticed(
    queue_path: str, broker_url: str, how: str, wait_until: Wait
) -> None:
    """By a consumer within a second or so; connecting again uses the new file."""
    with Connection(broker_url) as connection:
        connection.Producer().publish("old", routing_key="q")
        channel = connection.default_channel
        assert channel.basic_get("q").payload == "old"
        for suffix in ("", "-wal", "-shm"):
            if how == "deleted":
                os.unlink(queue_path + suffix)
            else:
                os.rename(queue_path + suffix, queue_path + "-moved" + suffix)

        def noticed() -> bool:
            try:
                channel.basic_get("q")
            except QueueReplacedError:
                return True
            return False

        wait_until(noticed)
        assert not connection.connected
        connection.ensure_connection(max_retries=3)
        connection.Producer().publish("new", routing_key="q")
        assert connection.default_channel.basic_get("q").payload == "new"
    with QueueDatabase(queue_path) as database:
        assert database.stats().total_tasks == 1


BAD = {
    "an epoch number as time": ("run_after_utc", "1732435200", "failed"),
    "a number in the future": ("run_after_utc", "32503680000", "failed"),
    "no time at all": ("run_after_utc", "'soon'", "failed"),
    "a date that does not exist": ("run_after_utc", "'2020-02-31 00:00:00'", "failed"),
    "a late date that does not exist": ("run_after_utc", "'2999-02-31 00:00:00'", None),
    "text as priority": ("priority", "'high'", "failed"),
    "a blob as priority": ("priority", "x'00ff'", "failed"),
    "a blob as type": ("type", "x'00ff'", "failed"),
    "a blob as queue": ("queue", "x'00ff'", "failed"),
    "an unknown state": ("status", "'pending'", "failed"),
    "a number as expiry": ("expires_at_utc", "1999999999", "failed"),
    "broken text as payload": ("payload", "CAST(x'7bff7d' AS TEXT)", "failed"),
    "broken text as type": ("type", "CAST(x'ff' AS TEXT)", "failed"),
    "broken text as compatibility": ("compatibility", "CAST(x'ff' AS TEXT)", "failed"),
    "broken text as time": ("run_after_utc", "CAST(x'ff' AS TEXT)", "failed"),
    "broken text as expiry": ("expires_at_utc", "CAST(x'ff' AS TEXT)", "failed"),
    "no JSON": ("payload", "'{'", "failed"),
    "a JSON number": ("payload", "'5'", "failed"),
    "a wrong array": ("payload", "'[1, 2, 3]'", "failed"),
    "deep JSON": ("payload", "printf('%.*c', 100000, '[')", "failed"),
    "a blob as payload": ("payload", "x'ff'", "failed"),
    "headers that are no JSON": ("headers", "'{'", "failed"),
    "headers that are a list": ("headers", "'[]'", "failed"),
    "a NUL in the type": ("type", "'a' || char(0) || 'b'", "processing"),
    "a huge priority": ("priority", "9223372036854775807", "processing"),
    "SQL as type": ("type", "'x''; DROP TABLE task_queue; --'", "processing"),
    "ISO time of the past": ("run_after_utc", "'2020-01-01T00:00:00Z'", "processing"),
    "ISO time of just now": (
        "run_after_utc",
        "strftime('%Y-%m-%dT%H:%M:%SZ', 'now', '-1 second')",
        "processing",
    ),
    "ISO time with an offset": (
        "run_after_utc",
        "strftime('%Y-%m-%dT%H:%M:%S', 'now', '+2 hours') || '+02:00'",
        "processing",
    ),
    "ISO time of the future": ("run_after_utc", "'2999-01-01T00:00:00Z'", "queued"),
}


@pytest.mark.parametrize(("column", "value", "ends"), BAD.values(), ids=BAD.keys())
def test_a_bad_row_is_quarantined_and_the_good_ones_go_on(
    queue_path: str, broker_url: str, wait_until: Wait, column: str, value: str, ends: str | None
) -> None:
    """It fails with its reason, or it is mended; a row behind it is delivered."""
    with QueueDatabase(queue_path) as database, Connection(broker_url) as connection:
        columns = {"type": "'t'", "payload": "'{}'", column: value}
        database.execute(
            f"INSERT INTO task_queue ({', '.join(columns)}) VALUES ({', '.join(columns.values())})"
        )
        database.execute("INSERT INTO task_queue (type, payload) VALUES ('good', '{}')")
        channel = connection.default_channel
        got = []

        def good_came() -> bool:
            message = channel.basic_get("celery")
            if message is not None:
                got.append(message.headers["task"])
            return "good" in got

        wait_until(good_came)

        def settled() -> bool:
            channel.basic_get("celery")
            row = database.execute(
                "SELECT CAST(status AS TEXT), error_message FROM task_queue WHERE id = 1"
            )[0]
            return row[0] == ends and (ends != "failed" or bool(row[1]))

        if ends is not None:
            wait_until(settled)


def test_a_foreign_time_is_rewritten_in_the_files_form(
    database: QueueDatabase, wait_until: Wait
) -> None:
    """Within a second."""
    database.claim("nothing")
    database.execute(
        "INSERT INTO task_queue (type, payload, run_after_utc) "
        "VALUES ('t', '{}', '2999-01-01T02:00:00+02:00')"
    )
    wait_until(
        lambda: (
            database.execute("SELECT run_after_utc FROM task_queue")[0][0]
            == "2999-01-01 00:00:00.000"
        )
    )


@pytest.mark.parametrize("step_s", [-3600.0, 3600.0])
def test_a_clock_that_steps_stalls_nothing(
    database: QueueDatabase, monkeypatch: pytest.MonkeyPatch, step_s: float
) -> None:
    """An hour back or forward, between publish, requeue and claim."""
    real = time.time
    database.enqueue("a")
    (delivery,) = database.claim()
    monkeypatch.setattr(time, "time", lambda: real() + step_s)
    database.requeue(delivery)
    database.enqueue("b")
    assert [d.type for d in database.claim(limit=5)] == ["a", "b"]


def test_names_are_data(broker_url: str, queue_path: str) -> None:
    """SQL in a queue's name, a task's name or a key changes nothing."""
    evil = "x'); DROP TABLE task_queue; --"
    with QueueDatabase(queue_path) as database:
        task = database.enqueue(evil, queue=evil, idempotency_key=evil)
        assert database.list(type=evil, queue=evil)[0].id == task.id
        assert database.stats(queue=evil, type=evil).queued_tasks == 1
        assert database.claim(evil)[0].type == evil
