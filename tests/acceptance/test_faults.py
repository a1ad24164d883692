"""Workers on a disk that fails for a second or two: they live, and are not deaf afterwards."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.celery.conftest import Lab

HERE = Path(__file__).parent

WRITES = "write -wal IOERR_WRITE"
PERMISSIONS = "write -wal READONLY,open db CANTOPEN"
READS = "read -wal IOERR_READ,read db IOERR_READ"
CUT_OFF = "read -wal SHORT,read db SHORT"
SYNCS = "sync -wal IOERR_FSYNC,sync db IOERR_FSYNC,write db IOERR_WRITE"

#: Every fault meets one pool, every pool a fault of reading and one of writing.
CASES = [
    ("prefork", WRITES),
    ("prefork", CUT_OFF),
    ("prefork", SYNCS),
    ("threads", PERMISSIONS),
    ("threads", READS),
    ("solo", WRITES),
    ("solo", READS),
]


@pytest.fixture
def switch(tmp_path: Path) -> Path:
    """A file that says what fails, as long as it exists."""
    return tmp_path / "faults"


@pytest.fixture
def faulty(make_lab: Callable[..., Lab], switch: Path) -> Lab:
    """A lab whose workers, not the test itself, have their files on a disk that may fail."""
    lab = make_lab("?synchronous=FULL", module="living")
    lab.module = "faulty_app"
    lab.environment["TEST_FAULTS"] = str(switch)
    lab.environment["PYTHONPATH"] += os.pathsep + str(HERE)
    return lab


def fail(switch: Path, fault: str) -> None:
    """Let it fail from now on."""
    half = switch.with_name("half")
    half.write_text(fault, encoding="ascii")
    half.rename(switch)


@pytest.mark.parametrize(
    ("pool", "fault"), CASES, ids=[f"{pool}, {fault}" for pool, fault in CASES]
)
def test_a_worker_goes_on(faulty: Lab, switch: Path, pool: str, fault: str) -> None:
    """Each task runs once, each result arrives, and its upkeep still does its duties."""
    worker = faulty.worker("-P", pool, "-c", "2")
    results = [faulty.tasks.add.delay(number) for number in range(20)]
    later = faulty.tasks.add.apply_async((100,), countdown=1)
    faulty.wait(lambda: len(faulty.lines()) > 5)
    fail(switch, fault)
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        results.append(faulty.tasks.add.delay(len(results)))
        time.sleep(0.05)  # the pace of the publishers
    assert worker.poll() is None
    met = faulty.log()
    switch.unlink()
    after = faulty.tasks.add.delay(1000)
    assert after.get(timeout=30) == 1000
    assert later.get(timeout=30) == 100
    assert [result.get(timeout=30) for result in results] == list(range(len(results)))
    assert "injected" in met or "damaged" in met or "disk I/O error" in met
    total = len(results) + 2
    faulty.wait(lambda: faulty.database.stats().completed_tasks == total)
    sums = [f"sum {number}" for number in (*range(len(results)), 100, 1000)]
    assert sorted(faulty.lines()) == sorted(sums)
    rows = faulty.database.execute("SELECT DISTINCT attempts, deaths FROM task_queue")
    assert [tuple(row) for row in rows] == [(1, 0)]
    assert worker.poll() is None
    assert faulty.log().count("Upkeep waits for the file") < 5
    assert faulty.database.execute("PRAGMA integrity_check")[0][0] == "ok"
    assert faulty.stop(worker) == 0
