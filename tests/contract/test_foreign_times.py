"""Times that other programs write in their own forms: nothing early, nothing late, no haste."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from kombu import Connection

from kombu_sqlite import QueueDatabase
from kombu_sqlite.clock import datetime_to_text

Wait = Callable[..., Any]

#: An hour's zone that makes the text sort late, one that makes it sort early, and UTC.
ZONES = {
    name: timezone(timedelta(hours=hours)) for name, hours in [("+5", 5), ("-5", -5), ("Z", 0)]
}

FORMS: dict[str, Callable[[datetime], str]] = {
    "isoformat": lambda moment: moment.isoformat(),
    "str": str,
    "seconds": lambda moment: moment.isoformat(sep=" ", timespec="seconds"),
    "T and Z": lambda moment: f"{moment.astimezone(timezone.utc):%Y-%m-%dT%H:%M:%SZ}",
}


def moment(zone: timezone, **offset: float) -> datetime:
    """A time near now in that zone."""
    return (datetime.now(timezone.utc) + timedelta(**offset)).astimezone(zone)


def insert(database: QueueDatabase, **columns: str) -> int:
    """Insert a row as another program would; return its id."""
    values = {"type": "t", "payload": "{}", **columns}
    names, marks = ", ".join(values), ", ".join("?" * len(values))
    sql = f"INSERT INTO task_queue ({names}) VALUES ({marks})"
    return database.execute(sql, tuple(values.values())).lastrowid


def due_text(database: QueueDatabase, id: int) -> str:
    """When a row is due, as the file says."""
    text: str = database.execute("SELECT run_after_utc FROM task_queue WHERE id = ?", (id,))[0][0]
    return text


@pytest.mark.parametrize(("zone", "form"), list(itertools.product(ZONES, FORMS)))
def test_a_time_just_past_is_due_in_any_form(
    database: QueueDatabase, wait_until: Wait, zone: str, form: str
) -> None:
    """Within a second or so, even where its text sorts hours after now."""
    database.claim()  # stands for the election
    insert(database, run_after_utc=FORMS[form](moment(ZONES[zone], seconds=-1)))
    assert wait_until(database.claim, 5)[0].type == "t"


@pytest.mark.parametrize(("zone", "form"), list(itertools.product(ZONES, FORMS)))
def test_a_time_to_come_is_not_due_in_any_form(
    database: QueueDatabase, wait_until: Wait, zone: str, form: str
) -> None:
    """Not even where its text sorts hours before now; the file's form comes soon."""
    later = moment(ZONES[zone], minutes=30)
    id = insert(database, run_after_utc=FORMS[form](later))
    assert database.claim() == []
    wait_until(lambda: due_text(database, id)[:19] == datetime_to_text(later)[:19], 5)
    assert database.claim() == []
    assert database.get(id).status == "queued"


@pytest.mark.parametrize("form", FORMS)
def test_a_message_of_kombus_can_be_put_off_by_sql(
    database: QueueDatabase, broker_url: str, wait_until: Wait, form: str
) -> None:
    """In any form, though it has headers of its own."""
    with Connection(broker_url) as connection:
        connection.Producer().publish("x", routing_key="q", headers={"task": "t"})
    database.claim("nothing")  # stands for the election
    soon = moment(ZONES["+5"], seconds=1.2)
    text = FORMS[form](soon)
    database.execute("UPDATE task_queue SET run_after_utc = ?", (text,))
    (delivery,) = wait_until(lambda: database.claim("q"), 8)
    assert datetime.now(timezone.utc) >= soon.replace(microsecond=0)
    assert json.loads(delivery.headers)["task"] == "t"
