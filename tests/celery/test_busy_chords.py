"""A chord whose body cannot be published at once, as the file is locked."""

from __future__ import annotations

from typing import Any

import apsw
from celery import Celery

import kombu_sqlite  # noqa: F401 - registers sqlite://


def test_the_body_waits_for_a_locked_file(broker_url: str, queue_path: str) -> None:
    """It is neither lost nor failed: the chord stays due, and whoever tries later publishes it."""
    url = broker_url + "?busy_timeout=0.05"
    app = Celery("chords", broker=url, backend=url, set_as_current=False)

    @app.task(name="chords.body", shared=False)
    def body(results: list[Any]) -> None:
        """Never executed here."""

    backend = app.backend
    chords = backend.store.chords
    signature = body.s().set(task_id="the-body")
    part = backend.encode(["head", "SUCCESS", 1])
    chords.begin("group", None, None)
    chords.set_size("group", 1, None)
    assert chords.return_part("group", "head", 0, part, backend.encode(signature), None)

    locker = apsw.Connection(queue_path)
    locker.execute("BEGIN IMMEDIATE")
    backend.finish_chord("group")
    assert backend.get_state("the-body") == "PENDING"
    assert chords.get("group").state == "due"
    locker.execute("ROLLBACK")
    locker.close()
    backend.finish_chord("group")
    assert chords.get("group").state == "done"
    assert backend.store.find("the-body").status == "queued"
    app.close()
