"""Counts every file of Python's standard library through a queue in one SQLite file.

Starts a worker, sends it one task a file and prints what they found. A run that was cut short is
continued by the next one: only files that neither wait in the queue nor have a result are sent.
Exits with 0 only if every file was counted exactly once.
"""

import argparse
import signal
import sys
import sysconfig
from contextlib import nullcontext
from pathlib import Path

import results
import tasks
import waiting
from kombu_sqlite import QueueDatabase
from report import print_statistics, print_summary
from worker import running_worker


def standard_library() -> tuple[str, list[str]]:
    """Return the standard library's folder and all its source files, sorted."""
    root = Path(sysconfig.get_path("stdlib"))
    added_later = {"site-packages", "dist-packages"}
    files = (path for path in root.rglob("*.py") if not added_later & set(path.parts))
    return str(root), sorted(str(path) for path in files if path.is_file())


def run(files: list[str], root: str, *, with_worker: bool) -> bool:
    """Count ``files`` through the queue; return whether each was counted exactly once.

    Raises:
        waiting.RunError: it could not be finished.
    """
    results.create()
    worker_or_none = running_worker() if with_worker else nullcontext()
    with QueueDatabase(tasks.BROKER) as queue, worker_or_none as worker:
        for file in waiting.untouched(queue, files):
            tasks.count_file.delay(file)
        waiting.await_counts(queue, worker, files)
        print_summary(waiting.await_summary(queue, worker, root))
        waiting.settle(queue)
        print_statistics(queue)
    executions = results.executions()
    repeated = sum(executions[file] > 1 for file in files if file in executions)
    if repeated:
        print(f"{repeated} tasks ran again after a crash; each file still counts once.")
    return all(file in executions for file in files)


def main() -> int:
    """Run the program; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, help="count the first LIMIT files only")
    parser.add_argument("--no-worker", action="store_true", help="wait for a worker run elsewhere")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped; run again to continue"))
    root, files = standard_library()
    try:
        once = run(files[: options.limit], root, with_worker=not options.no_worker)
    except (waiting.RunError, KeyboardInterrupt) as error:
        print(str(error) or "stopped; run again to continue", file=sys.stderr)
        return 1
    return 0 if once else 1


if __name__ == "__main__":
    sys.exit(main())
