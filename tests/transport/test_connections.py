"""Opening, failing over, pooling, batching: Kombu's connection around the transport."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest
from kombu import Connection, Producer, pools
from kombu.exceptions import OperationalError

import kombu_sqlite
from kombu_sqlite import QueueBusyError, QueueDatabase, QueueLocationError, QueueOptionError


def test_a_connection_describes_itself(connection: Connection, broker_url: str) -> None:
    """The URL as it was given, SQLite's version, a name of its own."""
    assert connection.as_uri() == broker_url
    assert connection.info()["hostname"] == broker_url
    assert connection.transport.driver_type == "sqlite"
    assert connection.transport.driver_version() == apsw.sqlite_lib_version()
    assert connection.is_evented
    assert broker_url in repr(connection)


def test_a_connection_can_be_cloned_and_pickled(connection: Connection) -> None:
    """The copy reaches the same file."""
    connection.Producer().publish("a", routing_key="q")
    for copy in (connection.clone(), pickle.loads(pickle.dumps(connection))):  # noqa: S301
        with copy:
            assert copy.default_channel.queue_declare("q", passive=True).message_count == 1


def test_a_relative_path_is_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the folder the process is in."""
    monkeypatch.chdir(tmp_path)
    with Connection("sqlite:///sub/q.db") as connection:
        connection.Producer().publish("a", routing_key="q")
    assert (tmp_path / "sub" / "q.db").exists()


def test_the_transport_is_found_without_the_alias(broker_url: str, tmp_path: Path) -> None:
    """By its full name, in a process that has not imported the package."""
    script = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "import kombu\n"
        f"c = kombu.Connection({broker_url!r}, transport='kombu_sqlite:Transport')\n"
        "c.Producer().publish('a', routing_key='q'); c.release()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite://host/q.db"])
def test_a_bad_url_fails_at_once(url: str) -> None:
    """With one sentence, not with retries."""
    with pytest.raises(QueueLocationError), Connection(url) as connection:
        connection.connect()


def test_a_bad_option_fails_at_once(broker_url: str) -> None:
    """From the URL and from the dictionary."""
    with pytest.raises(QueueOptionError), Connection(broker_url + "?synchronous=no") as one:
        one.connect()
    options = {"nonsense": 1}
    with pytest.raises(QueueOptionError), Connection(broker_url, transport_options=options) as two:
        two.connect()


def test_a_connection_that_failed_can_be_used_once_the_cause_is_gone(tmp_path: Path) -> None:
    """Nothing is remembered."""
    path = tmp_path / "q.db"
    path.mkdir()
    connection = Connection(f"sqlite:///{path}")
    with pytest.raises(QueueLocationError, match="directory"):
        connection.connect()
    path.rmdir()
    connection.Producer().publish("a", routing_key="q")
    connection.release()


def test_a_failover_list_goes_on_to_the_next(broker_url: str, tmp_path: Path) -> None:
    """From a server that is not there to the file, with options of both."""
    urls = f"amqp://127.0.0.1:1//;sqlite:///{tmp_path}/q.db"
    options = {"visibility_timeout": 30, "login_method": "PLAIN"}
    with Connection(urls, transport_options=options) as connection:
        connection.ensure_connection(max_retries=3, interval_start=0, interval_step=0)
        connection.Producer().publish("a", routing_key="q")
        assert connection.transport.driver_type == "sqlite"
        assert connection.default_channel.basic_get("q").payload == "a"
    with QueueDatabase(f"{tmp_path}/q.db") as database:
        assert database.stats().total_tasks == 1


def test_a_failover_list_goes_on_from_a_file_that_cannot_be_used(tmp_path: Path) -> None:
    """And an alternate is switched to by its URL."""
    (tmp_path / "folder").mkdir()
    urls = [f"sqlite:///{tmp_path}/folder", f"sqlite:///{tmp_path}/q.db"]
    with Connection(urls) as connection:
        connection.ensure_connection(max_retries=3, interval_start=0, interval_step=0)
        connection.Producer().publish("a", routing_key="q")
        assert connection.as_uri().endswith("/q.db")
    with QueueDatabase(f"{tmp_path}/q.db") as database:
        assert database.stats().total_tasks == 1


def test_pools_hand_out_connections(broker_url: str) -> None:
    """And producers."""
    connection = Connection(broker_url)
    pool = connection.Pool(limit=2)
    producers = pools.producers[connection]
    with pool.acquire() as one, pool.acquire() as two, producers.acquire() as producer:
        producer.publish("a", routing_key="q")
        assert one.default_channel.basic_get("q").payload == "a"
        assert two.default_channel.basic_get("q") is None
    pool.force_close_all()
    pools.reset()


def test_a_batch_is_one_transaction(connection: Connection) -> None:
    """All of it, or, when the block fails, none."""
    producer = connection.Producer()
    if not hasattr(producer, "batch"):
        pytest.skip("Kombu has Producer.batch() from 5.7 on")
    assert producer.supports_batch_publish
    with producer.batch():
        for number in range(100):
            producer.publish(number, routing_key="q")
    producer.publish("before", routing_key="q")
    with pytest.raises(ZeroDivisionError):
        fail_in_a_batch(producer)
    assert connection.default_channel.queue_declare("q", passive=True).message_count == 101


def fail_in_a_batch(producer: Producer) -> None:
    """Publish one message, then fail."""
    with producer.batch():
        producer.publish(1, routing_key="q")
        raise ZeroDivisionError


def test_a_locked_file_raises_and_is_retried_by_ensure(
    connect: Callable[..., Connection], queue_path: str
) -> None:
    """Nothing is lost and nothing is sent twice."""
    connection = connect("?busy_timeout=0.05")
    producer = connection.Producer()
    producer.publish("first", routing_key="q")
    with QueueDatabase(queue_path) as database:
        with database.transaction():
            with pytest.raises(QueueBusyError):
                publish_from_a_thread(producer.publish)
            with pytest.raises(OperationalError):
                publish_from_a_thread(producer.publish, retry=True, retry_policy={"max_retries": 1})
        producer.publish("last", routing_key="q", retry=True)
        assert database.stats().queued_tasks == 2


def publish_from_a_thread(publish: Callable[..., None], **options: object) -> None:
    """Publish where no transaction is open, and raise what it raises."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        pool.submit(publish, "x", routing_key="q", **options).result()


def test_the_file_is_its_owners_alone(connection: Connection, queue_path: str) -> None:
    """With everything beside it."""
    connection.SimpleQueue("q").put(1)
    connection.default_channel.store.session()
    folder = Path(queue_path).parent
    assert {os.stat(folder / name).st_mode & 0o077 for name in os.listdir(folder)} == {0}


def test_a_group_may_share_the_file(broker_url: str, queue_path: str) -> None:
    """Whatever the umask says."""
    before = os.umask(0o077)
    try:
        with Connection(broker_url + "?file_mode=0660") as connection:
            queue = connection.SimpleQueue("q")
            folder = Path(queue_path).parent
            modes = {name: os.stat(folder / name).st_mode & 0o777 for name in os.listdir(folder)}
            queue.close()
    finally:
        os.umask(before)
    assert set(modes.values()) == {0o660}, modes


def test_connecting_and_closing_leaks_no_descriptors(broker_url: str) -> None:
    """Nor threads; in a process of its own, where nothing else comes and goes."""
    source = """
import os, sys
import kombu_sqlite
from kombu import Connection

def use():
    with Connection(sys.argv[1]) as connection:
        queue = connection.SimpleQueue("q")
        queue.put(1)
        queue.get(timeout=5).ack()
        queue.close()

def count():
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

use()
before = count()
for _ in range(60):
    use()
assert count() <= before, (count(), before)
"""
    search = os.pathsep.join([str(Path(kombu_sqlite.__file__).parents[1]), *sys.path])
    subprocess.run(
        [sys.executable, "-c", source, broker_url],
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": search},
    )
