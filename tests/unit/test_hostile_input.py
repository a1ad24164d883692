"""Whatever stands in a row, a URL or an option: it is taken, or refused by the one error for it."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from kombu_sqlite import QueueLocationError, QueueOptionError
from kombu_sqlite.envelope import decode
from kombu_sqlite.foreign import BadMessageError
from kombu_sqlite.models import Delivery, DeliveryTag, Task
from kombu_sqlite.options import Options, path_from_url
from kombu_sqlite.revocations import carries
from kombu_sqlite.routing import meets
from kombu_sqlite.rows import task_values

DEEP = ["[" * 20_000, '{"a":' * 20_000, '{"__type__": "uuid", "a": ' + "[" * 20_000]
ODD = [
    '{"a": 1, "a": 2}',
    '{"a": NaN, "b": Infinity, "c": -1e999}',
    '"\\ud800"',
    '{"\\ud800": "\\udfff"}',
    "9" * 10_000,
    '{"__type__": "datetime", "__value__": "9" }',
    '{"__type__": "bytes", "__value__": "\\ud800"}',
    '{"__type__": ["x"], "__value__": {}}',
    '{"compression": []}',
    '{"delivery_info": {"exchange": {}}, "content_type": [1], "priority": "x"}',
]
REFUSALS = (QueueLocationError, QueueOptionError)


def outcome(refusal: Any, work: Callable[[], Any]) -> Any:
    """What ``work`` returns, or the one kind of error it may raise."""
    try:
        return work()
    except refusal as exc:
        return exc


#: As SQLite hands text over: never with a surrogate.
sql_text = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from([*DEEP, *ODD])
json_text = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["__type__", "__value__", "delivery_info", "content_type", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
).map(json.dumps)
#: What a column of text can hold: SQLite makes text of numbers, and keeps blobs.
stored = st.binary() | sql_text | json_text
texts = json_text | sql_text


@given(
    payload=stored,
    headers=st.none() | stored,
    properties=st.none() | stored,
    task_id=st.none() | stored,
    queue=sql_text,
    priority=st.integers(-(2**63), 2**63 - 1),
    redis_order=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_any_row_is_a_message_or_a_reason(
    payload: Any,
    headers: Any,
    properties: Any,
    task_id: Any,
    queue: str,
    priority: int,
    redis_order: bool,
) -> None:
    """Nothing but the reason to quarantine it leaves the decoder."""
    tag = DeliveryTag(1, 1)
    delivery = Delivery(tag, queue, "t", priority, payload, headers, properties, task_id)
    content = outcome(BadMessageError, lambda: decode(delivery, redis_order))
    if isinstance(content, BadMessageError):
        assert str(content)
        return
    assert isinstance(content.headers, dict)
    assert isinstance(content.properties, dict)
    assert isinstance(content.body, bytes)


@given(texts)
@settings(max_examples=200, deadline=None)
def test_any_text_is_looked_at_without_harm(text: str) -> None:
    """As a requirement, as stamped headers, as a listed task's payload."""
    assert meets({"a": 1}, text) in (True, False)
    assert carries(text, {"a": ["1"]}) in (True, False)
    task = Task(payload=text, compatibility=text)
    assert isinstance(task.get_payload_dict(), dict)
    assert isinstance(task.get_compatibility_dict(), dict)


@given(texts)
@settings(max_examples=200, deadline=None)
def test_a_payload_to_enqueue_is_json_or_a_value_error(text: str) -> None:
    """However deep; what is taken is taken as it is."""
    values = outcome(ValueError, lambda: task_values("t", text))
    if isinstance(values, ValueError):
        assert "payload must be JSON" in str(values)
    else:
        assert values["payload"] == text


url_text = st.text(st.sampled_from(string.printable + "é\ud800\udcff\0%/:?&=;#~")) | st.text()


@given(url_text, st.sampled_from(["", "sqlite://", "sqlite:///", "sqlite:////", "sqlite+x:///"]))
@settings(max_examples=300, deadline=None)
@example("?capabilities=" + DEEP[0], "sqlite:///q.db")
@example("q%00.db", "sqlite:///")
@example("~\ud800", "sqlite:///")
@example("?capabilities=%7B%22a%22%3A%20NaN%7D", "sqlite:///q.db")
def test_any_url_is_options_or_one_sentence(text: str, prefix: str) -> None:
    """The project's own error, and never another; nothing is opened."""
    options = outcome(REFUSALS, lambda: Options.load(*path_from_url(prefix + text)))
    if isinstance(options, REFUSALS):
        assert str(options)[-1] in ".?"
    else:
        assert options.path


option_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.decimals()
    | st.binary()
    | st.text()
    | st.sampled_from([*DEEP, *ODD, "0o600", "٣", "1_000"])
    | st.builds(object),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.text() | st.integers() | st.binary(), inner, max_size=2)
    ),
    max_leaves=4,
)
NAMES = sorted(name for name in Options.__dataclass_fields__ if name != "path")


@given(st.sampled_from(NAMES), option_values)
@settings(max_examples=400, deadline=None)
@example("capabilities", {"a": {1, 2}})
@example("capabilities", DEEP[0])
@example("capabilities", [("a", 1)])
@example("visibility_timeout", float("nan"))
@example("max_attempts", 10**5000)
def test_any_value_of_an_option_is_valid_or_one_sentence(name: str, value: Any) -> None:
    """What is taken is of the option's type, and capabilities can be told in JSON."""
    options = outcome(QueueOptionError, lambda: Options.load("q.db", {name: value}))
    if isinstance(options, QueueOptionError):
        assert f"Option {name!r} is" in str(options)
        assert len(str(options)) < 500
    else:
        assert type(getattr(options, name)) is type(getattr(Options("q.db"), name))
        assert json.loads(json.dumps(options.capabilities)) is not None
