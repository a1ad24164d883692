"""The Django example: its own commands, a real server, a real worker, two files."""

from __future__ import annotations

import http.client
import json
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from kombu_sqlite import QueueDatabase

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "django_shop"
PROGRAMS = {"python": [sys.executable], "celery": [sys.executable, "-m", "celery"]}


def command(beginning: str) -> list[str]:
    """The command of the example's README that begins like this, to be run by this Python."""
    text = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"^{re.escape(beginning)}.*$", text, re.MULTILINE)
    assert found, beginning
    program, *arguments = shlex.split(found[0])
    return [*PROGRAMS[program], *arguments]


class Shop:
    """The example with its files in a folder of their own, and the processes on them."""

    def __init__(self, folder: Path, wait_until: Callable[..., Any]) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "SHOP_DATA": str(folder),
        }
        self.environment.pop("DJANGO_SETTINGS_MODULE", None)
        self.processes: list[subprocess.Popen[bytes]] = []
        self.queue = QueueDatabase(str(folder / "queue.db"))
        self.port = 0
        self._wait_until = wait_until

    def wait(self, condition: Callable[[], Any]) -> Any:
        """Wait until a condition holds and return its value; give up when a process has ended."""

        def holds() -> Any:
            assert all(process.poll() is None for process in self.processes), self.logs()
            return condition()

        return self._wait_until(holds, 30)

    def logs(self) -> str:
        """What the processes have printed."""
        return "\n".join(path.read_text()[-3000:] for path in self.folder.glob("*.log"))

    def start(self, name: str, arguments: list[str]) -> None:
        """Start a command in the example's folder."""
        with open(self.folder / f"{name}.log", "wb") as log:
            process = subprocess.Popen(
                arguments,
                cwd=EXAMPLE,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes.append(process)

    def serve(self) -> None:
        """Make the tables, start Django's server, and wait until it serves."""
        subprocess.run(
            command("python manage.py migrate"),
            cwd=EXAMPLE,
            env=self.environment,
            check=True,
            capture_output=True,
        )
        self.start("server", [*command("python manage.py runserver"), "--noreload", "127.0.0.1:0"])
        banner = re.compile(r"http://127\.0\.0\.1:(\d+)/")
        self.port = int(self.wait(lambda: banner.search(self.logs()))[1])

    def work(self) -> None:
        """Start a worker, which need not be ready yet."""
        self.start("worker", [*command("celery -A proj worker"), "-c", "1"])

    def request(self, method: str, path: str, body: str | None = None) -> tuple[int, Any]:
        """Ask the shop; return the status and what it answers, if that is JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            form = {"Content-Type": "application/x-www-form-urlencoded"}
            connection.request(method, path, body, form if body else {})
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        is_json = response.headers.get_content_type() == "application/json"
        return response.status, json.loads(text) if is_json else text

    def order(self, quantity: int) -> tuple[int, Any]:
        """Order tea."""
        return self.request("POST", "/orders/", f"product=tea&quantity={quantity}")

    def confirmed_at(self, order_id: int) -> Any:
        """When the worker confirmed an order; None while it has not."""
        status, shown = self.request("GET", f"/orders/{order_id}/")
        assert status == 200, shown
        return shown["confirmed_at"]

    def active(self) -> list[Any]:
        """What the worker says that it executes."""
        with Celery(broker=f"sqlite:///{self.folder}/queue.db", set_as_current=False) as app:
            answers = app.control.inspect(limit=1, timeout=10).active() or {}
        return [task for tasks in answers.values() for task in tasks if task["time_start"]]

    def close(self) -> None:
        """Kill everything."""
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
        self.queue.close()


@pytest.fixture
def shop(tmp_path: Path, wait_until: Callable[..., Any]) -> Iterator[Shop]:
    """The shop, open, with no worker yet."""
    made = Shop(tmp_path, wait_until)
    try:
        made.serve()
        yield made
    finally:
        made.close()


def test_an_order_is_confirmed_by_the_worker(shop: Shop) -> None:
    """Taken with no worker running, confirmed once one runs; a repeated run changes nothing."""
    status, order = shop.order(2)
    assert (status, order["quantity"], order["confirmed_at"]) == (201, 2, None)
    assert shop.queue.stats().queued_tasks == 1
    shop.work()
    first = shop.wait(lambda: shop.confirmed_at(order["id"]))
    shop.queue.enqueue("shop.tasks.confirm_order", {"order_id": order["id"]})
    shop.wait(lambda: shop.queue.stats().completed_tasks == 2)
    assert shop.confirmed_at(order["id"]) == first


def test_an_order_that_is_rolled_back_enqueues_nothing(shop: Shop) -> None:
    """More than there is, asked for after the task was; the next good order is enqueued."""
    assert shop.order(11)[0] == 409
    assert shop.request("GET", "/orders/1/")[0] == 404
    assert shop.queue.stats().total_tasks == 0
    status, order = shop.order(10)
    assert status == 201
    assert [task.type for task in shop.queue.list()] == ["shop.tasks.confirm_order"]
    assert json.loads(shop.queue.list()[0].payload)[0] == [order["id"]]
    assert shop.order(1)[0] == 409
    assert shop.queue.stats().total_tasks == 1


def test_the_killed_workers_order_is_confirmed_by_the_next(shop: Shop) -> None:
    """Killed between the begin and the end of its task; no order is lost."""
    order = shop.order(1)[1]["id"]
    with closing(sqlite3.connect(shop.folder / "shop.db", isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")  # the task begins, and waits for this
        shop.work()
        shop.wait(lambda: shop.queue.list()[0].processing_started_utc)
        active = shop.wait(shop.active)
        assert [task["acknowledged"] for task in active] == [False]
        killed = shop.processes.pop()
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait(10)
    assert shop.confirmed_at(order) is None
    shop.work()
    shop.wait(lambda: shop.confirmed_at(order))
    shop.wait(lambda: shop.queue.stats().completed_tasks == 1)
    assert shop.queue.list()[0].attempts == 2


def test_wrong_orders_are_refused(shop: Shop) -> None:
    """With a reason, and no task."""
    status, answer = shop.order(0)
    assert (status, list(answer["errors"])) == (400, ["quantity"])
    assert shop.queue.stats().total_tasks == 0
