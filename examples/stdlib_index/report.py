"""What a run prints at its end."""

from kombu_sqlite import QueueDatabase
from results import RESULTS, Summary

STATISTICS = (
    "total_tasks",
    "queued_tasks",
    "processing_tasks",
    "completed_tasks",
    "failed_tasks",
    "cancelled_tasks",
    "oldest_queued_age_seconds",
)
QUEUE_QUERY = "SELECT type, status, count(*) FROM task_queue GROUP BY 1, 2"
RESULTS_QUERY = "SELECT path, problem FROM files WHERE problem NOT NULL"


def print_summary(summary: Summary) -> None:
    """Print the totals and the ten largest files."""
    print("standard library")
    for name in ("files", "lines", "words", "names", "problems"):
        print(f"  {name:<10} {getattr(summary, name):>12,}")
    print("\nlargest files, in lines")
    for path, lines in summary.largest:
        print(f"  {lines:>7,}  {path}")


def print_statistics(queue: QueueDatabase) -> None:
    """Print what the queue says of itself, and how to look into both files."""
    statistics = queue.stats()
    print("\nqueue")
    for name in STATISTICS:
        print(f"  {name:<26} {getattr(statistics, name)!s:>6}")
    print("\nto look inside:")
    print(f"  sqlite3 -readonly {queue.path} '{QUEUE_QUERY}'")
    print(f"  sqlite3 -readonly {RESULTS} '{RESULTS_QUERY}'")
