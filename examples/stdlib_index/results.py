"""The example's own results, in a SQLite file of their own.

Never the queue's file: that one belongs to the SQLite inside APSW, and a second SQLite library in
the same process would drop its locks.
"""

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from counting import FileCount

RESULTS = Path("stdlib_index_results.db")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files(
    path TEXT PRIMARY KEY,
    lines INTEGER NOT NULL,
    words INTEGER NOT NULL,
    names INTEGER NOT NULL,
    problem TEXT,
    executions INTEGER NOT NULL DEFAULT 1);
CREATE TABLE IF NOT EXISTS summaries(root TEXT PRIMARY KEY, summary TEXT NOT NULL);
"""


@dataclass(frozen=True)
class Summary:
    """The totals of all files below one folder; ``largest`` holds ten pairs of path and lines."""

    files: int
    lines: int
    words: int
    names: int
    problems: int
    largest: list[tuple[str, int]]


@contextmanager
def _opened() -> Iterator[sqlite3.Connection]:
    """Yield a connection; its statements are committed together, or not at all on an exception."""
    connection = sqlite3.connect(RESULTS, timeout=30)
    try:
        # Most Pythons link a SQLite that can lose commits when a checkpoint meets a writer. Without
        # automatic checkpoints the last connection to close makes the only one, alone.
        connection.execute("PRAGMA wal_autocheckpoint=0")
        with connection:
            yield connection
    finally:
        connection.close()


def create() -> None:
    """Make the file and its tables where they are missing."""
    with _opened() as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.executescript(_SCHEMA)


def record(path: str, found: FileCount) -> None:
    """Store what was found in ``path``: one row however often it runs, with the number of runs."""
    with _opened() as connection:
        connection.execute(
            "INSERT INTO files(path, lines, words, names, problem) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT(path) DO UPDATE SET lines = excluded.lines, words = excluded.words,"
            " names = excluded.names, problem = excluded.problem, executions = executions + 1",
            (path, found.lines, found.words, found.names, found.problem),
        )


def executions() -> dict[str, int]:
    """Return how many times each path has been counted; paths never counted are absent."""
    with _opened() as connection:
        return dict(connection.execute("SELECT path, executions FROM files"))


def summarise(root: str) -> None:
    """Add up all files below the folder ``root``; the summary takes the place of an older one."""
    below = {"below": os.path.join(root, "")}
    with _opened() as connection:
        files, lines, words, names, problems = connection.execute(
            "SELECT count(*), sum(lines), sum(words), sum(names), count(problem)"
            " FROM files WHERE substr(path, 1, length(:below)) = :below",
            below,
        ).fetchone()
        largest = connection.execute(
            "SELECT path, lines FROM files WHERE substr(path, 1, length(:below)) = :below"
            " ORDER BY lines DESC, path LIMIT 10",
            below,
        ).fetchall()
        found = Summary(files, lines or 0, words or 0, names or 0, problems, largest)
        connection.execute(
            "INSERT OR REPLACE INTO summaries(root, summary) VALUES (?, ?)",
            (root, json.dumps(asdict(found))),
        )


def forget_summary(root: str) -> None:
    """Remove the summary of ``root``, so that the next one found is a new one."""
    with _opened() as connection:
        connection.execute("DELETE FROM summaries WHERE root = ?", (root,))


def summary(root: str) -> Summary | None:
    """Return the stored summary of ``root``, or None while there is none."""
    with _opened() as connection:
        row = connection.execute("SELECT summary FROM summaries WHERE root = ?", (root,)).fetchone()
    return Summary(**json.loads(row[0])) if row else None
