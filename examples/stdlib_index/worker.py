"""A Celery worker as a child process, for as long as a block runs."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOG = Path("stdlib_index.log")
STOP_TIMEOUT_S = 60


@contextmanager
def running_worker() -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker of two processes in the current folder; SIGTERM stops it at the end.

    The worker finishes what it has begun and leaves the rest in the queue.

    Raises:
        subprocess.TimeoutExpired: it did not stop in time and was killed.
    """
    command = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "-c", "2", "-l", "INFO"]
    here = str(Path(__file__).resolve().parent)
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    with LOG.open("ab") as log:
        # In a session of its own, so that Ctrl-C reaches this program alone.
        worker = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": path},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield worker
    finally:
        worker.terminate()
        try:
            worker.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
            raise
