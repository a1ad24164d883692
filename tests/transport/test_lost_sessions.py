"""Connections of a process whose session was found silent and is lost."""

from __future__ import annotations

from kombu import Connection

from kombu_sqlite import QueueDatabase


def test_a_producer_of_a_process_that_lost_its_session_publishes_within_a_transaction(
    broker_url: str, queue_path: str
) -> None:
    """Through the process's present object for the file: it waits for nobody, least for itself."""
    url = broker_url + "?busy_timeout=0.2"
    with Connection(url) as connection, QueueDatabase(url) as database:
        producer = connection.Producer()
        producer.publish("before", routing_key="q")
        lost = connection.transport.store
        lost.session().give_up()
        with database.transaction():
            producer.publish("within", routing_key="q")
        assert database.stats(queue="q").queued_tasks == 2
        assert not connection.transport.store.retired
        assert connection.transport.store is database._store


def test_a_message_taken_before_the_session_was_lost_keeps_its_connection(
    broker_url: str, queue_path: str
) -> None:
    """Its end is refused where it was taken; publishing there goes on meanwhile."""
    with Connection(broker_url) as connection:
        channel = connection.default_channel
        producer = connection.Producer()
        producer.publish("taken", routing_key="q")
        message = channel.basic_get("q")
        store = connection.transport.store
        store.session().give_up()
        producer.publish("next", routing_key="q")
        assert connection.transport.store is store
        message.ack()
    with QueueDatabase(queue_path) as database:
        assert database.stats().total_tasks == 2
