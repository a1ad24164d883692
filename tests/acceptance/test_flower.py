"""Flower, as it is, watching a worker on a queue file; nothing but this package added to it."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any

import pytest

from tests.celery.conftest import Lab

INSTALLED = any(point.name == "queue" for point in entry_points(group="celery.commands"))
pytestmark = pytest.mark.skipif(
    not INSTALLED, reason="the package is not installed: no entry points"
)


class Site(Lab):
    """A lab with a worker that sends events, and a Flower that listens to them."""

    port = 0

    def open(self) -> None:
        """Start both, and wait until Flower serves, listens, and knows the worker."""
        self.environment["FLOWER_UNAUTHENTICATED_API"] = "1"
        self.worker("-c", "3", "-E")
        process = self.celery("flower", "--address=127.0.0.1", "--port=0", log="flower.log")
        banner = re.compile(r"Visit me at http://127\.0\.0\.1:(\d+)")
        found = self.wait(
            lambda: self.ended(process, "flower") or banner.search(self.log("flower"))
        )
        self.port = int(found[1])
        answers = {"active_queues", "stats"}
        self.wait(lambda: answers <= self.json("/api/workers").get("w1@test", {}).keys())
        listens = "SELECT count(*) FROM bindings WHERE exchange = 'celeryev'"
        self.wait(lambda: self.database.execute(listens)[0][0])

    def request(self, path: str, method: str = "GET") -> tuple[int, str]:
        """Ask Flower; return the status and the page."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def json(self, path: str, method: str = "GET") -> Any:
        """Ask Flower's API."""
        status, text = self.request(path, method)
        assert status == 200, text
        return json.loads(text)

    def task(self, task_id: str) -> Any:
        """What Flower knows of one task; nothing before it has heard of it."""
        status, text = self.request(f"/api/task/info/{task_id}")
        return json.loads(text) if status == 200 else {}

    def lengths(self) -> dict[str, Any]:
        """Flower's queues by name."""
        return {queue["name"]: queue for queue in self.json("/api/queues/length")["active_queues"]}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One worker and one Flower for this module; each test sends tasks of its own."""
    made = Site(tmp_path_factory.mktemp("site"))
    try:
        made.open()
        yield made
    finally:
        made.close()


def test_the_worker_is_shown_with_its_pool_and_queues(site: Site) -> None:
    """It answers Flower's inspection and its heartbeats make it online."""
    worker = site.json("/api/workers")["w1@test"]
    assert worker["stats"]["pool"]["max-concurrency"] == 3
    assert worker["stats"]["broker"]["transport"] == "sqlite"
    assert {"celery", "other", "topic"} <= {queue["name"] for queue in worker["active_queues"]}
    site.wait(lambda: site.json("/api/workers?status=1").get("w1@test"))


def test_tasks_are_shown_with_their_ends(site: Site) -> None:
    """One that succeeds with its result, one that fails with its exception."""
    good, bad = site.tasks.add.delay(19, 23).id, site.tasks.fail.delay("broken").id
    site.wait(lambda: site.task(good).get("state") == "SUCCESS")
    site.wait(lambda: site.task(bad).get("state") == "FAILURE")
    shown = site.json("/api/tasks")
    assert (shown[good]["name"], shown[good]["result"]) == ("app.add", "42")
    assert (shown[good]["worker"], shown[bad]["exception"]) == ("w1@test", "ValueError('broken')")


def test_the_queues_are_shown_with_what_they_hold(site: Site) -> None:
    """Messages that wait, delayed ones included; that are held; the queue of no worker as well."""
    held = site.tasks.late.delay("held", 600)
    for number in range(3):
        site.tasks.note.apply_async((number,), queue="other", countdown=600)
        site.tasks.note.apply_async((number,), queue="elsewhere")
    site.wait(lambda: site.task(held.id).get("state") == "STARTED")
    site.wait(lambda: site.lengths()["celery"]["messages_unacknowledged"] == 1)
    lengths = site.lengths()
    assert lengths["other"] == {
        "name": "other",
        "messages": 3,
        "messages_ready": 3,
        "messages_unacknowledged": 0,
        "consumers": 1,
    }
    assert (lengths["elsewhere"]["messages"], lengths["elsewhere"]["consumers"]) == (3, 0)
    assert (lengths["topic"]["messages"], lengths["topic"]["consumers"]) == (0, 1)

    status, page = site.request("/broker")
    assert status == 200
    assert site.url in page
    rows = {
        name: re.findall(r"<td[^>]*>(.*?)</td>", cells)
        for name, cells in re.findall(r'<tr id="([^"]+)">(.*?)</tr>', page, re.DOTALL)
    }
    assert rows["other"][:5] == ["other", "3", "0", "3", "1"]
    assert rows["elsewhere"][:5] == ["elsewhere", "3", "0", "3", "0"]
    assert rows["celery"][2] == "1"
    site.json(f"/api/task/revoke/{held.id}?terminate=true", "POST")


def test_a_delayed_task_is_revoked(site: Site) -> None:
    """By one click before it is due; it never runs."""
    revoked = site.tasks.note.apply_async(("revoked",), countdown=3).id
    answer = site.json(f"/api/task/revoke/{revoked}", "POST")
    assert answer == {"message": f"Revoked '{revoked}'"}
    site.wait(lambda: site.task(revoked).get("state") == "REVOKED")
    site.wait(lambda: site.database.get(revoked).status not in ("queued", "processing"))
    assert "revoked" not in site.lines()


def test_a_running_task_is_terminated(site: Site) -> None:
    """Its process is stopped, and the pool goes on with others."""
    running = site.tasks.late.delay("terminated", 600).id
    site.wait(lambda: site.task(running).get("state") == "STARTED")
    site.json(f"/api/task/revoke/{running}?terminate=true", "POST")
    site.wait(lambda: site.task(running).get("state") == "REVOKED")
    site.tasks.note.delay("after")
    site.wait(lambda: "after" in site.lines())
    assert "terminated" not in site.lines()
