"""The Celery app: one task for each file of the standard library, and one that adds them up.

``acks_late`` lets a task of a killed worker run again; recording a count twice leaves one row.
"""

import os
from pathlib import Path

from celery import Celery

import counting
import kombu_sqlite  # noqa: F401  (makes Kombu know sqlite://)
import results

BROKER = os.environ.get("STDLIB_INDEX_BROKER", "sqlite:///stdlib_index.db")

app = Celery("stdlib_index", broker=BROKER)
app.conf.task_acks_late = True
app.conf.task_ignore_result = True


@app.task
def count_file(path: str) -> None:
    """Count one file and record the result; repeatable."""
    try:
        found = counting.count(Path(path))
    except OSError as error:
        found = counting.FileCount(0, 0, 0, problem=f"unreadable: {error}")
    results.record(path, found)


@app.task
def summarise(root: str) -> None:
    """Store the totals of all files below the folder ``root``; repeatable."""
    results.summarise(root)
