"""Whatever a message holds comes out of a real file as it went in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kombu import Connection, Queue
from kombu.exceptions import ContentDisallowed

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
#: Kombu and the transport read these headers themselves.
header_names = st.text().filter(lambda name: name not in ("compression", "compatibility"))
#: UTF-8 has no lone surrogates; names that begin with NUL are the transport's own.
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=255).filter(
    lambda name: not name.startswith("\0")
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    """One connection for every example."""
    folder = tmp_path_factory.mktemp("round_trips")
    with Connection(f"sqlite:///{folder}/queue.db") as connection:
        yield connection


def through_the_file(connection: Connection, body: Any, queue: str = "q", **how: Any) -> Any:
    """Publish, receive, acknowledge; the message."""
    connection.Producer().publish(body, routing_key=queue, **how)
    message = connection.default_channel.basic_get(queue)
    message.ack()
    return message


@settings(deadline=None)
@given(body=st.binary(max_size=6000), encoding=st.sampled_from(["binary", "utf-8", "us-ascii"]))
def test_any_bytes_come_back(shared: Connection, body: bytes, encoding: str) -> None:
    """NULs, broken UTF-8 and bodies larger than a page included."""
    message = through_the_file(
        shared, body, content_type="application/x-thing", content_encoding=encoding
    )
    assert message.body == body
    assert (message.content_type, message.content_encoding) == ("application/x-thing", encoding)


@settings(deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_any_text_comes_back(shared: Connection, text: str) -> None:
    """As text, NULs included; an empty body Kombu leaves undecoded, whatever the transport."""
    message = through_the_file(shared, text, content_type="text/plain", content_encoding="utf-8")
    assert message.payload == text


@settings(deadline=None)
@given(headers=st.dictionaries(header_names, json_values, max_size=4), body=json_values)
def test_any_json_comes_back(shared: Connection, headers: dict[str, Any], body: Any) -> None:
    """As headers and as body."""
    message = through_the_file(shared, body, headers=headers, serializer="json")
    assert message.headers == headers
    assert message.payload == body


@settings(deadline=None, max_examples=50)
@given(name=names, durable=st.booleans())
def test_any_name_is_a_queue(shared: Connection, name: str, durable: bool) -> None:
    """Durable or not; it is found, counted, emptied and deleted by that name."""
    channel = shared.default_channel
    queue = Queue(name, routing_key=name, durable=durable)(channel)
    queue.declare()
    shared.Producer().publish("left", routing_key=name)
    assert through_the_file(shared, "right", name).payload == "left"
    assert channel.queue_declare(name, passive=True).message_count == 1
    assert queue.purge() == 1
    queue.delete()
    assert not channel._has_queue(name)


@pytest.mark.parametrize("text", ["plain", "日本語", "a\0b", "\N{GRINNING FACE}" * 1000])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("compression", [None, "zlib", "bzip2"])
def test_text_in_its_encoding_comes_back(
    shared: Connection, text: str, encoding: str, compression: str | None
) -> None:
    """Compressed or not."""
    message = through_the_file(
        shared, text, content_type="text/plain", content_encoding=encoding, compression=compression
    )
    assert message.payload == text


@pytest.mark.parametrize("durable", [True, False])
def test_a_large_text_comes_back(shared: Connection, durable: bool) -> None:
    """Twenty megabytes, in characters of two bytes."""
    name = f"large-{durable}"
    Queue(name, routing_key=name, durable=durable)(shared.default_channel).declare()
    text = "é" * 10_000_000
    assert through_the_file(shared, text, name).payload == text


def test_a_serializer_not_accepted_is_refused_by_the_reader(shared: Connection) -> None:
    """A pickle is never loaded by whoever did not ask for it; its bytes are there."""
    shared.Producer().publish({"x": 1}, routing_key="q", serializer="pickle")
    message = shared.default_channel.basic_get("q")
    message.accept = {"application/json"}
    with pytest.raises(ContentDisallowed):
        message.decode()
    message.reject()


@pytest.mark.parametrize("priority", [-5, 0, 3, 9, 255, 100_000])
def test_a_priority_comes_back(shared: Connection, priority: int) -> None:
    """As it was given: nothing is clamped to 0-9."""
    message = through_the_file(shared, 1, priority=priority)
    assert message.properties["priority"] == priority
