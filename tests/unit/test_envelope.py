"""Messages as rows and back: nothing changes on the way."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kombu_sqlite.envelope import decode, encode
from kombu_sqlite.foreign import BadMessageError, check_columns, foreign_body
from kombu_sqlite.log import logger
from kombu_sqlite.models import DELIVERED_BEFORE, Delivery, DeliveryTag

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
#: What Kombu's own JSON encoder uses to mark a typed value.
plain_keys = st.text().filter(lambda key: key not in ("__type__", "__value__", "compression"))
header_maps = st.dictionaries(plain_keys, json_values, max_size=5).filter(
    lambda headers: "__type__" not in json.dumps(headers)
)


def message(body: Any, headers: dict[str, Any], encoding: str = "utf-8", **properties: Any) -> Any:
    """A message as a channel prepares it."""
    return {
        "body": body,
        "content-encoding": encoding,
        "content-type": "application/json",
        "headers": headers,
        "properties": {"delivery_info": {}, "delivery_mode": 2, **properties},
    }


def round_trip(raw: Any, redis_order: bool = False) -> Any:
    """Encode, pretend to store and claim, decode."""
    row = encode(raw, "x", "key", redis_order)
    delivery = Delivery(
        DeliveryTag(1, 1),
        "q",
        row.type,
        row.priority,
        row.payload,
        row.headers,
        row.properties,
        row.task_id,
    )
    return decode(delivery, redis_order)


@given(header_maps, st.binary(max_size=200), st.sampled_from(["utf-8", "binary", "us-ascii"]))
def test_any_headers_and_any_bytes_come_back(
    headers: dict[str, Any], body: bytes, encoding: str
) -> None:
    """Body byte for byte, headers equal, whatever the content encoding says."""
    content = round_trip(message(body, headers, encoding))
    assert content.body == body
    assert content.headers == headers
    assert content.content_encoding == encoding


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_a_text_body_stays_readable_text(body: str) -> None:
    """It is stored as it is and delivered as UTF-8."""
    raw = message(body, {})
    assert encode(raw, "", "q", False).payload == body
    assert round_trip(raw).body == body.encode()


def test_bytes_that_are_text_are_stored_as_text() -> None:
    """So ``sqlite3 queue.db 'SELECT payload'`` shows them."""
    assert encode(message(b'{"a": 1}', {}), "", "q", False).payload == '{"a": 1}'


def test_a_compressed_body_stays_bytes() -> None:
    """Even if it happens to be valid UTF-8."""
    assert encode(message(b"abc", {"compression": "x"}), "", "q", False).payload == b"abc"


def test_properties_and_route_come_back() -> None:
    """The exchange and routing key are where Kombu looks for them."""
    content = round_trip(message("1", {}, correlation_id="c", priority=3, reply_to="r"))
    assert content.properties["correlation_id"] == "c"
    assert content.properties["priority"] == 3
    assert content.properties["delivery_info"] == {"exchange": "x", "routing_key": "key"}


def test_values_json_does_not_know_go_through_kombus_encoder() -> None:
    """A UUID in a header comes back as one."""
    import uuid

    value = uuid.uuid4()
    assert round_trip(message("1", {"trace": value})).headers == {"trace": value}


@pytest.mark.parametrize("kind", ["unheard of", "uuid", "decimal", "datetime"])
def test_a_header_that_only_looks_typed_comes_back_as_it_is(kind: str) -> None:
    """A message that was published is delivered, not failed for what its sender calls a key."""
    headers = {"x": {"__type__": kind, "__value__": "nonsense"}}
    assert round_trip(message("1", headers)).headers == headers


@given(st.text(), st.sampled_from(["utf-16", "latin-1", "utf-8", "us-ascii", "none", "x-unknown"]))
def test_the_encoding_decides_nothing_about_the_bytes(text: str, encoding: str) -> None:
    """Also bytes that are not what their encoding says."""
    body = text.encode("utf-16", "surrogatepass")
    assert round_trip(message(body, {}, encoding)).body == body


@given(st.integers(-1000, 1000), st.booleans())
def test_a_row_priority_is_turned_back_into_the_apps(priority: int, redis_order: bool) -> None:
    """Whoever reads a foreign row's priority and publishes it again gets the same row priority."""
    delivery = foreign("{}", priority=100 + priority)
    seen = decode(delivery, redis_order).properties["priority"]
    again = encode(message("1", {}, priority=seen), "", "q", redis_order)
    assert again.priority == 100 + priority


@pytest.mark.parametrize(
    ("priority", "amqp", "redis"), [(0, 100, 100), (None, 100, 100), (9, 91, 109), (255, -155, 355)]
)
def test_priorities_mean_what_the_order_says(priority: Any, amqp: int, redis: int) -> None:
    """Zero and none are normal in both; nothing is clamped that a column holds."""
    raw = message("1", {}, priority=priority)
    assert encode(raw, "", "q", False).priority == amqp
    assert encode(raw, "", "q", True).priority == redis


@pytest.mark.parametrize("priority", ["high", [], float("nan")])
def test_a_priority_that_is_no_number_is_the_normal_one(priority: Any) -> None:
    """And comes back as it was sent."""
    raw = message("1", {}, priority=priority)
    assert encode(raw, "", "q", False).priority == 100
    assert repr(round_trip(raw).properties["priority"]) == repr(priority)


@pytest.mark.parametrize(
    ("expiration", "ttl_ms"), [("1500", 1500), (2.9, 2), ("-5", 0), ("soon", None), ("inf", None)]
)
def test_an_expiration_is_milliseconds_or_none(expiration: Any, ttl_ms: int | None) -> None:
    """One that is no number never ends a message."""
    assert encode(message("1", {}, expiration=expiration), "", "q", False).ttl_ms == ttl_ms


def test_a_time_that_is_none_is_left_to_the_worker() -> None:
    """It refuses the task, with Celery's own words; until then the message is due."""
    headers = {"task": "t", "id": "7", "eta": "soon", "expires": 5}
    row = encode(message("", headers), "", "q", False)
    assert (row.run_after, row.expires_at) == (None, None)


def test_a_celery_task_fills_the_documented_columns() -> None:
    """Type, task id, due time and expiry are read off the headers."""
    headers = {
        "task": "tasks.add",
        "id": "7",
        "eta": "2026-11-24T10:00:00+02:00",
        "expires": "2026-11-24T09:00:00+00:00",
    }
    row = encode(message("[[], {}, {}]", headers), "", "q", False)
    assert (row.type, row.task_id) == ("tasks.add", "7")
    assert row.run_after == "2026-11-24 08:00:00.000"
    assert row.expires_at == "2026-11-24 09:00:00.000"


def test_a_naive_eta_is_utc_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody else can know its zone."""
    headers = {"task": "t", "id": "7", "eta": "2026-11-24T10:00:00"}
    caplog.set_level("WARNING", logger=logger.name)
    logger.addHandler(caplog.handler)  # whoever set up logging before may have cut it off
    assert encode(message("", headers), "", "q", False).run_after == "2026-11-24 10:00:00.000"
    logger.removeHandler(caplog.handler)
    assert "no time zone" in caplog.text


def test_headers_of_other_messages_mean_nothing_to_the_file() -> None:
    """An ``eta`` that is not Celery's does not delay."""
    row = encode(message("", {"eta": "tomorrow", "expires": 5}), "", "q", False)
    assert (row.type, row.run_after, row.expires_at) == ("message", None, None)


def foreign(payload: Any, **columns: Any) -> Delivery:
    """A row as another program inserts it."""
    return Delivery(
        DeliveryTag(3, 1),
        columns.get("queue", "q"),
        "tasks.add",
        columns.get("priority", 100),
        payload,
        None,
        None,
        "minted",
    )


def test_a_json_object_is_keyword_arguments() -> None:
    """Of the task named by type, under the id minted at the claim."""
    content = decode(foreign('{"x": 1, "y": 2}'), False)
    args, kwargs, embed = json.loads(content.body)
    assert (args, kwargs) == ([], {"x": 1, "y": 2})
    assert embed["chord"] is None
    assert (content.headers["task"], content.headers["id"]) == ("tasks.add", "minted")
    assert content.content_type == "application/json"


def test_a_json_array_is_a_celery_body() -> None:
    """Arguments, keyword arguments, embed."""
    content = decode(foreign('[[1, 2], {"k": 3}, null]'), False)
    assert json.loads(content.body)[:2] == [[1, 2], {"k": 3}]


def test_a_foreign_priority_is_seen_in_the_apps_order() -> None:
    """Row 91 is AMQP's 9, and Redis' -9."""
    assert decode(foreign("{}", priority=91), False).properties["priority"] == 9
    assert decode(foreign("{}", priority=91), True).properties["priority"] == -9


@pytest.mark.parametrize(
    "payload",
    [
        "",
        "x",
        "1",
        '"text"',
        "null",
        "[1]",
        "[[], {}]",
        "[{}, [], {}]",
        "[[], {}, 5]",
        b"\xff",
        "[" * 100_000,
        "NaN",
    ],
)
def test_a_payload_that_is_no_task_is_a_reason(payload: Any) -> None:
    """Never another exception."""
    if payload == "NaN":
        assert math.isnan(json.loads(payload))
    with pytest.raises(BadMessageError):
        foreign_body(payload)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ((b"t", 100, "2026-01-01 00:00:00", None), "type"),
        (("t", "high", "2026-01-01 00:00:00", None), "priority"),
        (("t", 100, 1732435200, None), "run_after_utc"),
        (("t", 100, "soon", None), "run_after_utc"),
        (("t", 100, "2026-01-01 00:00:00", 5), "expires_at_utc"),
    ],
)
def test_a_column_of_the_wrong_kind_is_a_reason(columns: Any, reason: str) -> None:
    """The reason names the column."""
    assert str(check_columns(*columns)).startswith(reason)


def test_columns_that_make_sense_have_no_reason() -> None:
    """With and without an expiry."""
    assert check_columns("t", 1, "2026-01-01 00:00:00", None) is None
    assert check_columns("t", 1, "2026-01-01T00:00:00Z", "2026-01-01 00:00:00.5") is None


@given(st.integers(1, 2**63 - 1), st.integers(1, 2**63 - 1), st.booleans())
def test_a_delivery_tag_is_its_text(row_id: int, delivery_no: int, transient: bool) -> None:
    """Both ways; a transient message's tag is never a durable one's."""
    tag = DeliveryTag(row_id, delivery_no, transient)
    assert DeliveryTag.parse(str(tag)) == tag
    assert str(tag).startswith("t") is transient


@pytest.mark.parametrize("text", ["", "1", "1.", ".1", "x1.2", "1.2.3", "tt1.2", 1])
def test_what_is_no_delivery_tag_is_refused(text: Any) -> None:
    """Rather than taken for another delivery's."""
    with pytest.raises(ValueError, match=f"{text!r} is no delivery tag"):
        DeliveryTag.parse(text)


@pytest.mark.parametrize(
    ("headers", "properties"),
    [
        ("{", "{}"),
        ("[]", "{}"),
        ("{}", "5"),
        ("{}", '{"delivery_info": 3}'),
        ('{"__type__": "uuid", "__value__": {"hex": "7d5e0e0c29f54e9ca5a508a5a5a5a5a5"}}', "{}"),
        ("[" * 100_000, "{}"),
    ],
)
def test_headers_that_make_no_sense_are_refused(headers: str, properties: str) -> None:
    """Somebody else wrote them."""
    delivery = Delivery(DeliveryTag(1, 1), "q", "t", 1, "", headers, properties, None)
    with pytest.raises(BadMessageError):
        decode(delivery, False)


@pytest.mark.parametrize("value", ['"yesterday"', "true", "-3", "1.5", "null", "[]"])
def test_deliveries_that_make_no_sense_are_none(value: str) -> None:
    """Somebody else wrote them: the message is a good one, and keeps its other properties."""
    properties = f'{{"{DELIVERED_BEFORE}": {value}, "priority": 3}}'
    content = decode(Delivery(DeliveryTag(1, 1), "q", "t", 1, "", "{}", properties, None), False)
    assert (content.delivered_before, content.properties) == (0, {"priority": 3})
