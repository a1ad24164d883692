"""``celery queue …``: look into the queue's file, cancel and retry, from the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
from celery.bin.base import CeleryCommand, handle_preload_options
from celery.signals import import_modules

from kombu_sqlite import QueueDatabase, QueueDatabaseError, Statistics, Task, TaskLog

from .control import CancelOutcome, cancel, retry
from .flower import extend_flower
from .printing import plain, print_json, print_lines, print_pairs, print_table, readable_payload
from .queue_file import open_queue
from .stats import statistics

__all__ = ("queue",)

# Here, because Celery's command line loads this module in every process that can become Flower.
import_modules.connect(extend_flower, dispatch_uid="kombu-sqlite-flower", weak=False)

_STATES = ("queued", "processing", "completed", "failed", "cancelled")
_MOST_DIGITS = 18  # of a row id that SQLite can hold whatever they are

_NUMBER = click.IntRange(1, 10**_MOST_DIGITS - 1)

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_queue = click.option("--queue", "-Q", "name", default=None, help="Only this queue.")
_type = click.option("--type", "-t", "type_", default=None, help="Only tasks of this name.")
_id = click.argument("id_", metavar="ID")


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Turn what can go wrong with a file into one sentence and exit code 1."""
    try:
        yield
    except QueueDatabaseError as exc:
        raise click.ClickException(str(exc)) from exc
    except UnicodeDecodeError as exc:
        raise click.ClickException(
            "A row's text is not UTF-8; look at its columns by SQL, as CAST(… AS BLOB)."
        ) from exc


@contextmanager
def _database(context: Any) -> Iterator[QueueDatabase]:
    """Open the app's queue file."""
    with _one_sentence(), open_queue(context.obj.app) as database:
        yield database


def _row_of(database: QueueDatabase, text: str) -> Task | None:
    """Return the row whose id ``text`` is."""
    if text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS:
        return database.get(int(text))
    return None


def _unknown(text: str) -> click.ClickException:
    return click.ClickException(f"There is no row and no task with the id {plain(text)}.")


@click.group(name="queue")
@click.pass_context
@handle_preload_options
def queue(context: Any) -> None:
    """Look into the queue's file, cancel and retry."""


def _command(name: str) -> Callable[[Callable[..., None]], click.Command]:
    return queue.command(name, cls=CeleryCommand)


@_command("stats")
@_queue
@_type
@click.option("--window", type=_NUMBER, default=10_000, show_default=True, metavar="ROWS")
@click.option("--window-s", type=click.FloatRange(0, min_open=True), metavar="SECONDS")
@_json
@click.pass_context
def _stats(
    context: Any,
    name: str | None,
    type_: str | None,
    window: int,
    window_s: float | None,
    as_json: bool,
) -> None:
    """Count the tasks by state; rates and times of those that ended last.

    These are the last ROWS that ended, and with --window-s only those that ended within SECONDS.
    """
    with _database(context) as database:
        found = statistics(database, queue=name, type=type_, window=window, window_s=window_s)
    if as_json:
        print_json(found.to_dict())
    else:
        _print_statistics(found)


def _print_statistics(found: Statistics) -> None:
    counts = found.to_dict()
    window = counts.pop("window")
    depths = [counts.pop(f"depth_by_{by}") for by in ("queue", "type")]
    for name in ("wait_seconds", "run_seconds"):
        for rank, seconds in window.pop(name).items():
            window[f"{name}_{rank}"] = seconds
    for name in ("queue", "type"):
        del counts[name]
    for pairs in (counts, window):
        print_pairs({k: round(v, 4) if isinstance(v, float) else v for k, v in pairs.items()})
        print_lines([""])
    for by, depth in zip(("QUEUE", "TYPE"), depths, strict=True):
        odd = ["unknown"] if any("unknown" in states for states in depth.values()) else []
        states = (*_STATES, *odd)
        print_table(
            [by, *(state.upper() for state in states)],
            [[name, *(tasks.get(state, 0) for state in states)] for name, tasks in depth.items()],
        )
        if by == "QUEUE":
            print_lines([""])


@_command("list")
@click.option("--status", "-s", type=click.Choice(_STATES), default=None, help="Only this state.")
@_queue
@_type
@click.option("--scheduled", is_flag=True, help="What waits for its time, the next due first.")
@click.option("--limit", "-n", type=click.IntRange(1, 1000), default=100, show_default=True)
@click.option(
    "--before", type=_NUMBER, metavar="ID", help="The next page: the last row of this one."
)
@_json
@click.pass_context
def _list(
    context: Any,
    status: str | None,
    name: str | None,
    type_: str | None,
    scheduled: bool,
    limit: int,
    before: int | None,
    as_json: bool,
) -> None:
    """List tasks, the newest first."""
    if scheduled and status not in (None, "queued"):
        raise click.UsageError("--scheduled lists queued tasks; leave out --status.")
    with _database(context) as database:
        if scheduled:
            tasks = database.scheduled(queue=name, type=type_, after_id=before, limit=limit)
        else:
            tasks = database.list(
                status=status, queue=name, type=type_, before_id=before, limit=limit
            )
    rows = [task.to_dict() for task in tasks]
    if as_json:
        print_json(rows)
        return
    time = "run_after_utc" if scheduled else "created_at_utc"
    columns = ("id", "task_id", "type", "queue", "status", "priority", "attempts", time)
    print_table(
        [*(column.upper() for column in columns[:-1]), "DUE" if scheduled else "CREATED"],
        [[row[column] for column in columns] for row in rows],
    )


@_command("show")
@_id
@_json
@click.pass_context
def _show(context: Any, id_: str, as_json: bool) -> None:
    """Show all of one task, by its row's id or its task id, and its story."""
    with _database(context) as database:
        task = _row_of(database, id_) or database.get(id_)
        if task is None or task.id is None:
            raise _unknown(id_)
        logs = database.logs(task.id)
    if as_json:
        print_json({**task.to_dict(), "logs": [log.to_dict() for log in logs]})
    else:
        _print_task(task, logs)


def _print_task(task: Task, logs: list[TaskLog]) -> None:
    columns = task.to_dict()
    payload = columns.pop("payload")
    print_pairs(columns)
    print_lines(["", "payload", *(f"  {line}" for line in readable_payload(payload))])
    if logs:
        print_lines(["", "logs"])
        for log in logs:
            line = log.to_dict()
            print_lines(
                ["  " + "  ".join(plain(line[key]) for key in ("at_utc", "level", "message"))]
            )
            if line["details"] is not None:
                print_lines(f"    {detail}" for detail in readable_payload(line["details"]))


@_command("workers")
@_json
@click.pass_context
def _workers(context: Any, as_json: bool) -> None:
    """List the workers, whether they are alive, and how many tasks they hold."""
    with _database(context) as database:
        rows = [worker.to_dict() for worker in database.worker_states()]
    if as_json:
        print_json(rows)
        return
    columns = ("worker_id", "hostname", "host", "pid", "concurrency", "status", "processing")
    print_table(
        [*(column.upper() for column in columns), "HEARTBEAT"],
        [[row[column] for column in (*columns, "heartbeat_utc")] for row in rows],
    )


def _target(context: Any, text: str) -> int | str:
    """Return the row id that ``text`` is, or it as a task id: that may name several rows."""
    with _database(context) as database:
        found = _row_of(database, text)
    return text if found is None or found.id is None else found.id


@_command("cancel")
@_id
@click.option("--terminate", is_flag=True, help="Also when it is running.")
@click.option("--signal", "-S", default="SIGTERM", show_default=True, help="To terminate with.")
@click.option("--reason", "-r", default="cancelled", show_default=True, help="For its row.")
@_json
@click.pass_context
def _cancel(
    context: Any, id_: str, terminate: bool, signal: str, reason: str, as_json: bool
) -> None:
    """Cancel a task, by its row's id or its task id.

    A running one goes on without --terminate, and only a later retry of it ends cancelled. One
    that has ended is left alone, with exit code 1.
    """
    target = _target(context, id_)
    with _one_sentence():
        outcome = cancel(context.obj.app, target, terminate=terminate, signal=signal, reason=reason)
    if outcome.status == "unknown":
        raise _unknown(id_)
    _report(context, outcome, as_json)


def _report(context: Any, outcome: CancelOutcome, as_json: bool) -> None:
    done = outcome.status in ("cancelled", "running")
    if as_json:
        names = ("row_id", "task_id", "status", "message")
        print_json({name: getattr(outcome, name) for name in names})
    elif done:
        print_lines([plain(outcome.message)])
    else:
        raise click.ClickException(plain(outcome.message))
    context.exit(0 if done else 1)


@_command("retry")
@_id
@_json
@click.pass_context
def _retry(context: Any, id_: str, as_json: bool) -> None:
    """Queue a failed or cancelled task again, by its row's id or its task id."""
    target = _target(context, id_)
    with _one_sentence():
        try:
            task = retry(context.obj.app, target)
        except ValueError as exc:
            if isinstance(exc, UnicodeError):
                raise
            raise click.ClickException(plain(exc)) from exc
    if task is None:
        raise _unknown(id_)
    if as_json:
        print_json(task.to_dict())
    else:
        print_lines([f"Row {task.id} is queued again (task id {plain(task.task_id)})."])
