"""Waits for what the tasks leave behind, and notices when it can no longer come."""

import subprocess
import time

from celery import Task

import results
import tasks
from kombu_sqlite import QueueDatabase
from progress import Progress
from worker import LOG

POLL_S = 0.2
STALL_S = 2.0
SETTLE_S = 5.0

Worker = subprocess.Popen[bytes] | None


class RunError(Exception):
    """The run cannot go on; its message says why. Running again continues it."""


def pending(queue: QueueDatabase, task: Task) -> set[str]:
    """Return the first argument of every message of ``task`` that waits or runs."""
    rows = queue.execute(
        "SELECT json_extract(payload, '$[0][0]') FROM task_queue"
        " WHERE type = :type AND status IN ('queued', 'processing')",
        {"type": task.name},
    )
    return {argument for (argument,) in rows}


def untouched(queue: QueueDatabase, files: list[str]) -> list[str]:
    """Return the files that neither wait in the queue, nor run, nor have a result."""
    # The queue is read first: a task that ends meanwhile has its result by the second look.
    known = pending(queue, tasks.count_file)
    known |= results.executions().keys()
    return [path for path in files if path not in known]


def check(worker: Worker) -> None:
    """Raise RunError if the worker that this program started is gone."""
    if worker is not None and worker.poll() is not None:
        raise RunError(f"the worker ended with {worker.returncode}; {LOG} says why")


def await_counts(queue: QueueDatabase, worker: Worker, files: list[str]) -> None:
    """Show progress until every file has a result.

    Raises:
        RunError: the worker ended, or a file left the queue without a result.
    """
    progress = Progress(len(files))
    counted, changed_at = 0, time.monotonic()
    try:
        while counted < len(files):
            progress.show(counted)
            time.sleep(POLL_S)
            check(worker)
            before, counted = counted, len(results.executions().keys() & set(files))
            if counted > before:
                changed_at = time.monotonic()
            elif time.monotonic() - changed_at > STALL_S:
                changed_at = time.monotonic()
                if lost := untouched(queue, files):
                    raise RunError(f"{len(lost)} files failed, {lost[0]} first; {LOG} says why")
    finally:
        progress.close(counted)


def await_summary(queue: QueueDatabase, worker: Worker, root: str) -> results.Summary:
    """Have a worker add up the results, and return its summary.

    Raises:
        RunError: the worker ended, or the task failed.
    """
    results.forget_summary(root)
    tasks.summarise.delay(root)
    while True:
        check(worker)
        failed = root not in pending(queue, tasks.summarise)
        if summary := results.summary(root):
            return summary
        if failed:
            raise RunError(f"the summary failed; {LOG} says why")
        time.sleep(POLL_S)


def settle(queue: QueueDatabase) -> None:
    """Wait, within reason, until the last acknowledgement is in the file."""
    deadline = time.monotonic() + SETTLE_S
    while queue.stats().processing_tasks and time.monotonic() < deadline:
        time.sleep(POLL_S)
