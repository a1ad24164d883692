"""Workers on a disk that fills up under them and is cleared again."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from kombu.exceptions import OperationalError

from kombu_sqlite import QueueDiskError
from tests.celery.conftest import Lab

FULL = (OperationalError, QueueDiskError)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A lab whose queue, and nothing else, lies on a file system of 24 megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)]
    if os.getuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting a file system is not permitted here")
    made = Lab(disk)
    made.folder = tmp_path
    made.ledger = tmp_path / "ledger"
    made.environment["TEST_LEDGER"] = str(made.ledger)
    yield made
    made.close()
    # a pool's processes were killed with their worker, but may take a moment to be gone
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(path: Path) -> None:
    """Use up all the room there is."""
    with open(path, "ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 512)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_workers_go_on_after_a_full_disk(lab: Lab, pool: str) -> None:
    """What was published is done, once each; publishing raises meanwhile; nobody dies of it."""
    worker = lab.worker("-P", pool, "-c", "2")
    published = 0
    for _ in range(300):
        lab.tasks.late.apply_async((published, 0.01), retry=False)
        published += 1
    lab.wait(lambda: len(lab.lines()) > 5)
    filler = Path(lab.path).with_name("filler")
    refused = 0
    while not refused:
        fill(filler)  # again and again: a checkpoint may have given room back
        try:
            lab.tasks.late.apply_async((published, 0.01), retry=False)
            published += 1
        except FULL:
            refused += 1
        assert published < 20_000
    lab.wait(lambda: "make room" in lab.log())
    filler.unlink()
    lab.wait(lambda: lab.database.stats().completed_tasks == published, 60)
    assert sorted(map(int, lab.lines())) == list(range(published))
    lab.tasks.note.delay("after")
    lab.wait(lambda: "after" in lab.lines())
    assert worker.poll() is None
    assert lab.database.execute("PRAGMA integrity_check")[0][0] == "ok"
