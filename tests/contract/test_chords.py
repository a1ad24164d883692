"""Chords are counted by the file: each part once, each body once."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from kombu_sqlite import Options, Store, open_store


@pytest.fixture
def store(queue_path: str) -> Iterator[Store]:
    """The file's store."""
    opened = open_store(Options.load(queue_path))
    yield opened
    opened.release()


def give(store: Store, number: int, group_id: str = "g", body: str = "body") -> bool:
    """Return part ``number``."""
    return store.chords.return_part(group_id, f"t{number}", number, f"p{number}", body, None)


@pytest.mark.parametrize("size_at", [0, 1, 2, 3])
def test_the_last_part_makes_a_chord_due(store: Store, size_at: int) -> None:
    """Once; whether the size is known before, amid or after the parts."""
    store.chords.begin("g", None, None)
    due = []
    for number in range(4):
        if number == size_at:
            due.append(store.chords.set_size("g", 3, None))
        if number < 3:
            due.append(give(store, 2 - number))
    assert due.count(True) == 1
    assert due[-1]
    chord = store.chords.get("g")
    assert chord is not None
    assert (chord.state, chord.size, chord.returned, chord.body) == ("due", 3, 3, "body")
    assert store.chords.parts("g") == ["p0", "p1", "p2"]


def test_a_part_counts_once(store: Store) -> None:
    """Whatever comes again, before and after the chord is due and done; the first one stands."""
    store.chords.begin("g", None, None)
    store.chords.set_size("g", 2, None)
    assert not give(store, 0)
    assert not store.chords.return_part("g", "t0", 0, "again", "body", None)
    assert give(store, 1)
    assert not give(store, 1)
    assert store.chords.parts("g") == ["p0", "p1"]
    with store.chords.finishing("g", 60.0) as mine:
        assert mine
    assert not give(store, 0)
    assert store.chords.parts("g") == []
    chord = store.chords.get("g")
    assert chord is not None
    assert (chord.state, chord.returned, chord.body) == ("done", 2, None)


def test_parts_without_a_place_come_last(store: Store) -> None:
    """Tasks that the header's tasks have added may have none."""
    store.chords.begin("g", None, None)
    store.chords.set_size("g", 1, None)
    store.chords.add_part("g", None)
    store.chords.add_part("g", None)
    store.chords.return_part("g", "b", None, "second", "body", None)
    store.chords.return_part("g", "a", None, "first", "body", None)
    assert give(store, 5)
    assert store.chords.parts("g") == ["p5", "first", "second"]


def test_one_finisher_takes_the_mark(store: Store) -> None:
    """The others hear that it is gone; one that fails leaves it to them."""
    store.chords.begin("g", None, None)
    store.chords.set_size("g", 1, None)
    with store.chords.finishing("g", None) as mine:
        assert not mine
    give(store, 0)
    with pytest.raises(ZeroDivisionError), store.chords.finishing("g", None):
        raise ZeroDivisionError
    assert store.chords.parts("g") == ["p0"]
    assert store.chords.list_due(-1.0) == ["g"]
    assert store.chords.list_due(60.0) == []
    taken = []

    def finish() -> None:
        with store.chords.finishing("g", None) as mine:
            taken.append(mine)

    threads = [threading.Thread(target=finish) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(taken) == [False, False, False, False, True]
    assert store.chords.list_due(-1.0) == []


def test_a_chord_begun_anew_forgets_its_earlier_run(store: Store) -> None:
    """Also one that was done."""
    for _ in range(2):
        store.chords.begin("g", "header", None)
        store.chords.set_size("g", 2, None)
        assert not give(store, 0)
        store.chords.begin("g", None, None)
        store.chords.set_size("g", 2, None)
        assert store.chords.parts("g") == []
        assert [give(store, 0), give(store, 1)] == [False, True]
        with store.chords.finishing("g", None) as mine:
            assert mine


def test_parts_from_many_threads_make_one_end(store: Store) -> None:
    """Each part given by two threads at once."""
    store.chords.begin("g", None, None)
    store.chords.set_size("g", 100, None)
    due: list[bool] = []

    def run(numbers: range) -> None:
        due.extend(give(store, number) for number in numbers)

    threads = [
        threading.Thread(target=run, args=(numbers,))
        for numbers in (range(100), range(99, -1, -1), range(0, 100, 2), range(1, 100, 2))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert due.count(True) == 1
    assert store.chords.parts("g") == [f"p{number}" for number in range(100)]


def test_what_has_expired_goes_with_its_parts(store: Store) -> None:
    """Unfinished and finished ones by periods of their own."""
    store.chords.begin("late", None, 0.0)
    give(store, 0, "late")
    store.chords.begin("kept", None, 60.0)
    give(store, 0, "kept")
    for name, kept in (("over", 0.0), ("known", 60.0)):
        store.chords.begin(name, None, 60.0)
        store.chords.set_size(name, 1, None)
        give(store, 0, name)
        with store.chords.finishing(name, kept) as mine:
            assert mine
    assert store.results.delete_expired() == 2
    found = [store.chords.get(name) is not None for name in ("late", "kept", "over", "known")]
    assert found == [False, True, False, True]
    assert store.chords.parts("late") == []
    assert store.chords.parts("kept") == ["p0"]
