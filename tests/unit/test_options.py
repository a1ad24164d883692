"""URLs and options: what is read from them, and how they are refused."""

from __future__ import annotations

from dataclasses import fields

import pytest

from kombu_sqlite.errors import QueueLocationError, QueueOptionError
from kombu_sqlite.options import KOMBU_OPTIONS, Options, path_from_url


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///queue.db", "queue.db"),
        ("sqlite:////var/lib/queue.db", "/var/lib/queue.db"),
        ("sqlite:///C:/dir/queue.db", "C:/dir/queue.db"),
        ("sqlite:///sub/dir/a%20b.db", "sub/dir/a b.db"),
        ("sqlite:////tmp/%E9%98%9F.db", "/tmp/队.db"),  # noqa: S108 - never opened
    ],
)
def test_a_url_names_a_path(url: str, path: str) -> None:
    """Three slashes are relative, four absolute; escapes are undone."""
    assert path_from_url(url) == (path, {})


def test_query_parameters_are_options() -> None:
    """What stands behind the question mark is returned by name."""
    path, parameters = path_from_url("sqlite:///q.db?visibility_timeout=7&synchronous=full")
    options = Options.load(path, parameters)
    assert (options.path, options.visibility_timeout, options.synchronous) == ("q.db", 7.0, "FULL")


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("sqlite://", "names no file"),
        ("sqlite:///", "names no file"),
        ("sqlite:////some/dir/", "names no file"),
        ("sqlite://host/queue.db", "names a host"),
        ("sqlite://:memory:", "memory"),
        ("sqlite:///:memory:", "memory"),
        ("sqlite:///q.db?mode=memory", "memory"),
        ("sqlite:///q%00.db", "NUL"),
    ],
)
def test_a_url_that_is_no_local_file_is_refused(url: str, hint: str) -> None:
    """The sentence says what is wrong."""
    with pytest.raises(QueueLocationError, match=hint):
        path_from_url(url)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("visibility_timeout", "soon"),
        ("visibility_timeout", 0),
        ("visibility_timeout", True),
        ("busy_timeout", -1),
        ("max_attempts", 0),
        ("max_attempts", 1.5),
        ("priority_order", "up"),
        ("scheduling", "random"),
        ("capabilities", "[]"),
        ("capabilities", "{"),
        ("immediate_ack", "perhaps"),
        ("synchronous", "OFF"),
        ("file_mode", "0999"),
        ("file_mode", "0400"),
        ("mmap_size", -1),
        ("wal_autocheckpoint", 1),
        ("retention", -5),
        ("cache_size", "much"),
    ],
)
def test_a_bad_value_is_refused_with_what_it_must_be(name: str, value: object) -> None:
    """The sentence names the option, the value and the values allowed."""
    with pytest.raises(QueueOptionError, match=f"Option '{name}' is .*; it must be .+") as caught:
        Options.load("q.db", {name: value})
    assert repr(value) in str(caught.value)


def test_an_unknown_option_is_refused_with_a_hint() -> None:
    """A near name is offered."""
    with pytest.raises(QueueOptionError, match="did you mean 'visibility_timeout'"):
        Options.load("q.db", {"visibilty_timeout": 3})


def test_kombus_own_options_are_passed_over() -> None:
    """Kombu puts its retry policy into transport_options."""
    assert Options.load("q.db", dict.fromkeys(KOMBU_OPTIONS, 1)) == Options("q.db")


def test_a_failover_list_may_hold_options_of_other_transports() -> None:
    """Its one dictionary is shared."""
    options = Options.load("q.db", {"fanout_prefix": True}, ignore_unknown=True)
    assert options == Options("q.db")


def test_the_later_source_wins() -> None:
    """The URL is given last."""
    assert Options.load("q", {"max_attempts": 2}, {"max_attempts": "3"}).max_attempts == 3


def test_text_and_typed_values_are_the_same() -> None:
    """A URL knows only text."""
    typed = {"capabilities": {"region": "eu"}, "immediate_ack": True, "file_mode": 0o660}
    text = {"capabilities": '{"region": "eu"}', "immediate_ack": "true", "file_mode": "0660"}
    assert Options.load("q", typed) == Options.load("q", text)


IN_A_URL = {
    "visibility_timeout": ("7.5", 7.5),
    "busy_timeout": ("0", 0.0),
    "max_attempts": ("3", 3),
    "priority_order": ("Redis", "redis"),
    "scheduling": ("WEIGHTED", "weighted"),
    "capabilities": ("%7B%22region%22%3A%20%22eu%22%7D", {"region": "eu"}),
    "immediate_ack": ("yes", True),
    "retention": ("0", 0.0),
    "task_log": ("warning", "warning"),
    "synchronous": ("full", "FULL"),
    "file_mode": ("0660", 0o660),
    "cache_size": ("-4000", -4000),
    "mmap_size": ("1048576", 1048576),
    "wal_autocheckpoint": ("1000", 1000),
}


def test_every_option_is_tried_in_a_url() -> None:
    """The table above leaves none out."""
    assert set(IN_A_URL) == {item.name for item in fields(Options)} - {"path"}


@pytest.mark.parametrize("name", IN_A_URL)
def test_an_option_is_read_from_a_url(name: str) -> None:
    """Escapes are undone, names of choices are taken in any case; the others keep their default."""
    text, value = IN_A_URL[name]
    path, parameters = path_from_url(f"sqlite:////d/q.db?{name}={text}")
    options = Options.load(path, parameters)
    assert getattr(options, name) == value
    assert getattr(options, name) != getattr(Options("q"), name)
    assert Options.load(path, {name: value}) == options


@pytest.mark.parametrize("name", IN_A_URL)
def test_an_empty_value_is_refused(name: str) -> None:
    """It is a slip, not a wish for the default."""
    path, parameters = path_from_url(f"sqlite:///q.db?{name}=")
    with pytest.raises(QueueOptionError, match=f"Option '{name}' is ''"):
        Options.load(path, parameters)


def test_an_unknown_option_far_from_all_is_refused_with_the_list() -> None:
    """Every known name is in it."""
    with pytest.raises(QueueOptionError, match="known are") as caught:
        Options.load("q.db", {"zzz": 3})
    assert all(name in str(caught.value) for name in IN_A_URL)


def test_a_bad_value_is_refused_in_a_failover_list_too() -> None:
    """Only unknown names may be another transport's."""
    with pytest.raises(QueueOptionError, match="visibility_timeout"):
        Options.load("q.db", {"visibility_timeout": "soon"}, ignore_unknown=True)


def test_a_tilde_is_the_users_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the beginning of the path only."""
    monkeypatch.setenv("HOME", "/home/somebody")
    assert path_from_url("sqlite:///~/q.db")[0] == "/home/somebody/q.db"
    assert path_from_url("sqlite:///a/~/q.db")[0] == "a/~/q.db"


def test_options_cannot_be_changed() -> None:
    """A store is shared by all connections with the same ones."""
    options = Options("q.db")
    with pytest.raises(AttributeError):
        options.max_attempts = 3  # type: ignore[misc]


def test_every_option_has_a_description() -> None:
    """The README's table is made from them."""
    assert all(item.metadata["text"] for item in fields(Options) if item.name != "path")
