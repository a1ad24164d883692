"""Where messages go: AMQP's exchange types and binding keys."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kombu_sqlite.routing import Exchange, Queue, Topology, meets, topic_pattern

patterns = st.lists(st.sampled_from(["a", "b", "*", "#"]), min_size=1, max_size=4)


def naive_match(pattern: list[str], key: list[str]) -> bool:
    """AMQP 0-9-1, 3.1.3.3, word by word."""
    if not pattern:
        return not key
    if pattern[0] == "#":
        return any(naive_match(pattern[1:], key[n:]) for n in range(len(key) + 1))
    return bool(key) and pattern[0] in ("*", key[0]) and naive_match(pattern[1:], key[1:])


@given(patterns, st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=5))
def test_topics_match_as_amqp_says(pattern: list[str], key: list[str]) -> None:
    """The compiled pattern agrees with the definition."""
    compiled = topic_pattern(".".join(pattern))
    assert bool(compiled.match(".".join(key) + ".")) == naive_match(pattern, key)


@given(
    st.lists(st.tuples(patterns, st.sampled_from(["one", "two", "three"])), max_size=6),
    st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=4),
)
def test_a_topic_exchange_finds_each_queue_once(
    bound: list[tuple[list[str], str]], key: list[str]
) -> None:
    """Exactly the queues with a matching binding, asked once or again."""
    routes = topology("topic", [(".".join(pattern), queue) for pattern, queue in bound])
    expected = sorted({queue for pattern, queue in bound if naive_match(pattern, key)})
    for _ in range(2):
        assert sorted(routes.route("x", ".".join(key))) == expected


@pytest.mark.parametrize(
    ("pattern", "key", "matches"),
    [
        ("#", "", True),
        ("#.#", "a", True),
        ("*", "", True),
        ("*.*", "a", False),
        ("a.#.b", "a.b", True),
        ("a.#.b", "a.x.y.b", True),
        ("a.#.b", "a.x.y", False),
        ("A", "a", False),
        ("a\nb.*", "a\nb.c", True),
        ("a*", "ab", False),
        ("a.#", "a", True),
        ("#.b", "b", True),
        ("a.*", "a", False),
        ("a.*", "a.b.c", False),
        ("a+b", "aab", False),
        ("task.#", "task.sent.now", True),
    ],
)
def test_hash_is_zero_or_more_words_and_star_is_one(pattern: str, key: str, matches: bool) -> None:
    """Characters special to regular expressions are plain."""
    assert bool(topic_pattern(pattern).match(key + ".")) is matches


def topology(kind: str, bindings: list[tuple[str, str]]) -> Topology:
    """One exchange of a kind with bindings (key, queue)."""
    queues = [Queue(name) for _, name in bindings]
    exchange = Exchange("x", kind, True, False, {})
    return Topology(1, [exchange], queues, [("x", key, name) for key, name in bindings], [])


def test_direct_goes_to_equal_keys() -> None:
    """And nowhere else."""
    routes = topology("direct", [("k", "one"), ("k", "two"), ("other", "three")])
    assert sorted(routes.route("x", "k")) == ["one", "two"]
    assert routes.route("x", "nothing") == ()


def test_fanout_goes_everywhere_once() -> None:
    """A queue bound twice gets one copy."""
    routes = topology("fanout", [("k", "one"), ("l", "one"), ("", "two")])
    assert sorted(routes.route("x", "whatever")) == ["one", "two"]


def test_topic_gives_one_copy_to_a_queue_bound_twice() -> None:
    """Two matching bindings are one delivery."""
    routes = topology("topic", [("a.#", "one"), ("*.b", "one")])
    assert routes.route("x", "a.b") == ("one",)


def test_the_anonymous_exchange_goes_to_the_queue_of_that_name() -> None:
    """Declared or not."""
    assert topology("direct", []).route("", "anything") == ("anything",)


def test_an_undeclared_exchange_is_an_error() -> None:
    """Nothing is dropped in silence."""
    with pytest.raises(KeyError):
        topology("direct", []).route("nowhere", "k")


@pytest.mark.parametrize(
    ("offered", "wanted", "fits"),
    [
        ({}, "{}", True),
        ({"region": "eu"}, '{"region": "eu"}', True),
        ({"region": ["eu", "us"]}, '{"region": "us"}', True),
        ({"region": "eu"}, '{"region": "us"}', False),
        ({}, '{"gpu": true}', False),
        ({"gpu": True, "x": 1}, '{"gpu": true}', True),
        ({"gpu": True}, "not json", False),
        ({"gpu": True}, "[]", False),
    ],
)
def test_capabilities_meet_compatibility(
    offered: dict[str, object], wanted: str, fits: bool
) -> None:
    """Every key asked for is offered, with an equal value or a list that holds it."""
    assert meets(offered, wanted) is fits


@pytest.mark.parametrize(
    ("durable", "auto_delete", "transient"),
    [(True, False, False), (False, False, True), (True, True, True), (False, True, True)],
)
def test_only_durable_lasting_queues_are_in_task_queue(
    durable: bool, auto_delete: bool, transient: bool
) -> None:
    """The others' messages are kept apart."""
    assert Queue("q", durable, auto_delete).transient is transient
