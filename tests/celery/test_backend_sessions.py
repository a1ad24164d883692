"""The result backend in a process whose session is lost."""

from __future__ import annotations

from celery import Celery

import kombu_sqlite  # noqa: F401 - registers sqlite://


def test_a_transaction_keeps_its_file_though_the_session_is_lost_meanwhile(
    broker_url: str, queue_path: str
) -> None:
    """What is stored within it is stored with it; the next one goes through a new session."""
    url = broker_url + "?busy_timeout=0.2"
    app = Celery("sessions", broker=url, backend=url, set_as_current=False)
    backend = app.backend
    store = backend.store
    with store.database.transaction():
        store.session().give_up()
        backend.store_result("id", 1, "SUCCESS")
        assert backend.store is store
    assert backend.store is not store
    assert backend.get_result("id") == 1
    store.close()
    app.close()
