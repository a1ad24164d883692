"""``celery queue …`` as somebody types it."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery.bin.celery import celery
from click.testing import CliRunner, Result

from celery_integration.cli import queue

UNREADABLE = "CAST(x'ff41' AS TEXT)"
Run = Callable[..., Result]


@pytest.fixture
def run(lab: Any, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run ``celery -A app queue …`` in this process; no command may end in a traceback."""
    if "queue" not in celery.commands:
        celery.add_command(queue)
    monkeypatch.setenv("CELERY_BROKER_URL", "")  # the command sets it for good
    monkeypatch.delenv("CELERY_BROKER_URL")

    def invoke(*arguments: object, exit_code: int = 0, before: tuple[str, ...] = ()) -> Result:
        words = ["-A", "app", *before, "queue", *map(str, arguments)]
        result = CliRunner().invoke(celery, words)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.output
        assert result.exit_code == exit_code, result.output
        return result

    return invoke


def table(result: Result) -> list[list[str]]:
    """The cells of a table, by the columns of its first line."""
    lines = result.output.splitlines()
    return [line.split() for line in lines]


def end(lab: Any, task_id: str, status: str) -> None:
    """End one task."""
    for delivery in lab.database.claim(limit=100):
        if delivery.task_id != task_id:
            lab.database.requeue(delivery)
        elif status == "completed":
            lab.database.complete(delivery)
        else:
            lab.database.fail(delivery, "why")


def test_stats_shows_everything(lab: Any, run: Run) -> None:
    """Counts, measures of what ended, and depths by queue and by type."""
    lab.tasks.routed.delay("x")
    sent = lab.tasks.note.delay(1).id
    lab.tasks.note.delay(2)
    end(lab, sent, "completed")
    lines = {tuple(line) for line in table(run("stats"))}
    assert {
        ("total_tasks", "3"),
        ("queued_tasks", "2"),
        ("completed_tasks", "1"),
        ("active_workers", "1"),
        ("ended", "1"),
        ("success_rate", "1.0"),
        ("QUEUE", "QUEUED", "PROCESSING", "COMPLETED", "FAILED", "CANCELLED"),
        ("celery", "1", "0", "1", "0", "0"),
        ("other", "1", "0", "0", "0", "0"),
        ("app.note", "1", "0", "1", "0", "0"),
    } <= lines
    assert any(line[0] == "run_seconds_p99" for line in lines if line)


@pytest.mark.parametrize(
    ("arguments", "total"), [((), 2), (("-Q", "other"), 1), (("-t", "app.note"), 1)]
)
def test_stats_of_a_queue_or_type_as_json(
    lab: Any, run: Run, arguments: tuple[str, ...], total: int
) -> None:
    """The documented names, and a window that can be stated."""
    lab.tasks.routed.delay("x")
    lab.tasks.note.delay(1)
    found = json.loads(run("stats", "--json", "--window-s", "60", *arguments).output)
    assert (found["total_tasks"], found["queued_tasks"]) == (total, total)
    assert found["window"]["seconds"] == 60
    assert found["oldest_queued_age_seconds"] >= 0


def test_list_filters_and_pages(lab: Any, run: Run) -> None:
    """The newest first, in aligned columns."""
    sent = [lab.tasks.note.delay(n).id for n in range(3)]
    lab.tasks.routed.delay("x")
    end(lab, sent[1], "failed")

    def ids(*arguments: object) -> list[int]:
        listed = [task["id"] for task in json.loads(run("list", "--json", *arguments).output)]
        head, *rows = table(run("list", *arguments))
        assert head == [
            *("ID", "TASK_ID", "TYPE", "QUEUE", "STATUS", "PRIORITY", "ATTEMPTS", "CREATED")
        ]
        assert [int(row[0]) for row in rows] == listed
        return listed

    assert ids() == [4, 3, 2, 1]
    assert ids("--limit", 2) == [4, 3]
    assert ids("--limit", 2, "--before", 3) == [2, 1]
    assert ids("--status", "failed") == [2]
    assert ids("-Q", "other") == [4]
    assert ids("-t", "app.note", "-s", "queued") == [3, 1]
    assert ids("-t", "none") == []
    lines = run("list").output.splitlines()
    assert (
        len(
            {
                line.index(word)
                for line, word in zip(lines[1:], ["app.r"] + ["app.n"] * 3, strict=True)
            }
        )
        == 1
    )


def test_list_scheduled_is_ordered_by_time(lab: Any, run: Run) -> None:
    """What falls due first stands first; what is ready is left out."""
    lab.tasks.note.delay("now")
    for hours in (3, 1, 2):
        lab.tasks.note.apply_async((hours,), countdown=hours * 3600)
    head, *rows = table(run("list", "--scheduled"))
    assert head[-1] == "DUE"
    assert [row[0] for row in rows] == ["3", "4", "2"]
    soon = datetime.now(timezone.utc) + timedelta(hours=1, minutes=1)
    assert rows[0][-2] + " " + rows[0][-1] < f"{soon:%Y-%m-%d %H:%M:%S}"
    later = json.loads(run("list", "--scheduled", "--before", 3, "-n", 1, "--json").output)
    assert [task["id"] for task in later] == [4]
    refused = run("list", "--scheduled", "--status", "failed", exit_code=2)
    assert "leave out --status" in refused.output


def test_show_tells_all_of_a_task(lab: Any, run: Run) -> None:
    """Every column, the payload readable, and its story; by either id."""
    sent = lab.tasks.note.delay("grüße", key=7).id
    lab.database.execute(
        "INSERT INTO task_logs (task_id, level, message, details) VALUES (?, ?, ?, ?)",
        (1, "INFO", "seen by hand", '{"by": "me"}'),
    )
    output = run("show", sent).output
    assert output == run("show", 1).output
    task = lab.database.get(1)
    for name, value in task.to_dict().items():
        if name not in ("payload", "properties", "headers"):
            assert [name, *("-" if value is None else str(value)).split()] in table(run("show", 1))
    assert '      "grüße"' in output
    assert '      "key": 7' in output
    assert "INFO  seen by hand" in output
    assert '"by": "me"' in output
    found = json.loads(run("show", sent, "--json").output)
    assert (found["id"], found["task_id"], found["payload"]) == (1, sent, task.payload)
    assert [log["message"] for log in found["logs"]] == ["enqueued", "seen by hand"]


def test_a_number_is_a_row_before_it_is_a_task(lab: Any, run: Run) -> None:
    """Celery's ids may be numbers too, also such as no row can have."""
    lab.tasks.note.apply_async(("first",), task_id="2")
    lab.tasks.note.apply_async(("second",), task_id="77")
    lab.tasks.note.apply_async(("third",), task_id="9" * 5000)
    for given, row in (("1", 1), ("2", 2), ("77", 2), ("9" * 5000, 3)):
        assert json.loads(run("show", given, "--json").output)["id"] == row
    assert json.loads(run("cancel", "77", "--json").output)["row_id"] == 2
    assert json.loads(run("cancel", "1", "--json").output)["row_id"] == 1


def test_workers_are_listed(lab: Any, run: Run) -> None:
    """With whether they live and what they hold."""
    assert table(run("workers"))[0][:3] == ["WORKER_ID", "HOSTNAME", "HOST"]
    lab.tasks.note.delay(1)
    lab.database.claim()
    (worker,) = json.loads(run("workers", "--json").output)
    assert (worker["status"], worker["processing"]) == ("active", 1)
    assert worker["worker_id"] in run("workers").output


def test_cancel_and_retry(lab: Any, run: Run) -> None:
    """A task that waits is cancelled, for the reason given, and can be queued again."""
    sent = lab.tasks.note.delay(1).id
    done = run("cancel", sent, "--reason", "no longer wanted")
    assert len(done.output.splitlines()) == 1
    task = lab.database.get(sent)
    assert (task.status, task.error_message) == ("cancelled", "no longer wanted")
    assert f"task id {sent}" in run("retry", task.id).output
    assert lab.database.get(sent).status == "queued"
    found = json.loads(run("cancel", task.id, "--json").output)
    assert (found["row_id"], found["task_id"], found["status"]) == (task.id, sent, "cancelled")
    assert json.loads(run("retry", sent, "--json").output)["status"] == "queued"


def test_what_cannot_be_done_is_said_in_a_sentence(lab: Any, run: Run) -> None:
    """With exit code 1: the end of a task is not undone, one that waits needs no retry."""
    sent = lab.tasks.note.delay(1).id
    refused = run("retry", sent, exit_code=1)
    assert "only failed and cancelled" in refused.output
    end(lab, sent, "completed")
    refused = run("cancel", sent, exit_code=1)
    assert "already completed" in refused.output
    found = json.loads(run("cancel", sent, "--json", exit_code=1).output)
    assert found["status"] == "completed"
    assert run("retry", 1, exit_code=1).output.count("\n") == 1


@pytest.mark.parametrize("json_", [(), ("--json",)])
@pytest.mark.parametrize("command", ["show", "cancel", "retry"])
@pytest.mark.parametrize("id_", ["123", "none", "9" * 30, "-1", "²", ""])
def test_an_unknown_id_is_said_in_a_sentence(
    lab: Any, run: Run, command: str, id_: str, json_: tuple[str, ...]
) -> None:
    """With exit code 1."""
    refused = run(command, *json_, "--", id_, exit_code=1)
    assert refused.output == f"Error: There is no row and no task with the id {id_}.\n"


@pytest.mark.parametrize(
    "arguments", [("stats",), ("list",), ("show", "1"), ("workers",), ("cancel", "1")]
)
def test_an_app_on_another_broker_gets_a_sentence(run: Run, arguments: tuple[str, ...]) -> None:
    """With exit code 1."""
    refused = run(*arguments, exit_code=1, before=("-b", "memory://"))
    assert "not a queue file" in refused.output
    assert refused.output.count("\n") == 1


def test_a_locked_file_gets_a_sentence(make_lab: Any, run: Run) -> None:
    """With exit code 1; reading goes on meanwhile."""
    locked = make_lab("?busy_timeout=0.05")
    locked.tasks.note.delay(1)
    with locked.database.transaction():
        other = run("cancel", 1, exit_code=1, before=("-b", locked.url))
        assert "stayed locked" in other.output
        assert "queued_tasks                 1" in run("stats", before=("-b", locked.url)).output


def test_rows_do_not_steer_the_terminal(lab: Any, run: Run) -> None:
    """What does not print is escaped, in names, payloads and reasons."""
    evil = "\x1b]0;owned\x07\x9b31m\u202e\n"
    lab.database.enqueue(evil, {"x": evil}, queue=evil)
    lab.database.execute("INSERT INTO task_logs (task_id, message) VALUES (1, ?)", (evil,))
    for arguments in (("list",), ("show", 1), ("stats",), ("stats", "--json"), ("list", "--json")):
        output = run(*arguments).output
        assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(output)
        assert "owned" in output


def test_payloads_of_any_kind_are_shown(lab: Any, run: Run) -> None:
    """Text that is no JSON as it is, bytes in base64."""
    for payload in ("'not JSON'", "x'00ff'", "x'6869'", "'\"\\ud800\"'", "5"):
        lab.database.execute(f"INSERT INTO task_queue (type, payload) VALUES ('t', {payload})")
    shown = ("not JSON", "base64:AP8=", "hi", "ud800", "5")
    for row_id, text in enumerate(shown, 1):
        assert text in run("show", row_id).output
        assert json.loads(run("show", row_id, "--json").output)["payload"] is not None


@pytest.mark.parametrize("column", ["type", "queue", "payload", "task_id", "error_message"])
def test_text_that_is_none_raises_no_traceback(lab: Any, run: Run, column: str) -> None:
    """The row is shown with what of it can be read, and the counts are right."""
    lab.tasks.note.delay(1)
    lab.database.execute("INSERT INTO task_queue (type, payload) VALUES ('t', '{}')")
    lab.database.execute(f"UPDATE task_queue SET {column} = {UNREADABLE} WHERE id = 2")
    assert json.loads(run("stats", "--json").output)["queued_tasks"] == 2
    for arguments in (("list",), ("list", "--json"), ("show", 2), ("show", 2, "--json")):
        result = CliRunner().invoke(celery, ["-A", "app", "queue", *map(str, arguments)])
        assert isinstance(result.exception, (SystemExit, type(None))), result.exc_info
        if "show" in arguments:  # a list has no column for each of them
            assert "�A" in result.output or "ufffdA" in result.output
    run("show", 1)


def test_the_commands_work_as_a_program(lab: Any) -> None:
    """With nothing but the two entry points, into a pipe."""
    sent = lab.tasks.note.delay("grüße").id
    assert sent in lab.run("queue", "list")
    assert "gr" in lab.run("queue", "show", sent)
    assert "Row 1" in lab.run("queue", "cancel", sent)
    assert json.loads(lab.run("queue", "retry", sent, "--json"))["status"] == "queued"
    assert json.loads(lab.run("queue", "workers", "--json")) == []
