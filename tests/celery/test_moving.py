"""Moving an app's tasks to another broker with what Celery has for it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from celery.contrib.migrate import migrate_tasks
from kombu import Connection

DOCUMENT = Path(__file__).parents[2] / "docs" / "celery.md"


def test_all_tasks_move_to_another_broker(house: Any) -> None:
    """The delayed ones as well, with their time, once they are handed out as documented."""
    sent = [house.tasks.add.delay(1, 1), house.tasks.add.apply_async((2, 2), countdown=3600)]
    (handing_out,) = re.findall(
        r"`(UPDATE task_queue SET updated_at_utc[^`]*)`", DOCUMENT.read_text()
    )
    house.database.execute(" ".join(handing_out.split()))
    with Connection(house.app.conf.broker_url) as source, Connection("memory://") as target:
        moved = migrate_tasks(
            source, target, app=house.app, queues=["celery"], timeout=1, ack_messages=True
        )
        assert moved.count == 2
        channel = target.channel()
        messages = [channel.basic_get("celery", no_ack=True) for _ in sent]
        assert {message.headers["id"] for message in messages} == {task.id for task in sent}
        times = {message.headers["id"]: message.headers["eta"] for message in messages}
        assert times[sent[0].id] is None
        assert times[sent[1].id] > f"{house.database.get(2).created_at_utc:%Y-%m-%dT%H:%M:%S}"
    assert {house.database.get(task.id).status for task in sent} == {"completed"}
