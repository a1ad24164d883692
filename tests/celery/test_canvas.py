"""Canvas through a real worker: results and queue in one file, and results alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import celery
import pytest
from celery import chain, chord, group
from celery.exceptions import ChordError
from celery.exceptions import TimeoutError as ResultTimeout

GENEROUS_S = 60
POOLS = {"prefork": ("-P", "prefork", "-c", "2"), "solo": ("-P", "solo")}
only_prefork = pytest.mark.parametrize(
    "canvas", [POOLS["prefork"]], ids=["prefork"], indirect=True, scope="module"
)


@pytest.fixture(scope="module", params=POOLS.values(), ids=POOLS.keys())
def canvas(request: Any, make_station: Callable[..., Any]) -> Any:
    """A worker of one pool for all tests of this module."""
    lab = make_station("results_app", *request.param)
    lab.arguments = request.param
    return lab


@pytest.fixture(autouse=True)
def clean(canvas: Any) -> Iterator[None]:
    """Begin with an empty ledger; end with nothing running and no chord left half counted."""
    canvas.app.set_current()  # Celery 5.6 makes some of a canvas's signatures for the current app
    canvas.forget_lines()
    yield
    canvas.wait(lambda: canvas.database.stats().processing_tasks == 0)
    due = "SELECT group_id FROM chords WHERE state = 'due'"
    canvas.wait(lambda: canvas.database.execute(due) == [])


def get(result: Any) -> Any:
    """The value of a result, waited for."""
    return result.get(timeout=GENEROUS_S)


def end_of(lab: Any, result: Any) -> Any:
    """What stands under a result's own id, without the help of its parents."""
    return lab.app.AsyncResult(result.id).get(timeout=GENEROUS_S, propagate=False)


def signatures(t: Any) -> dict[str, tuple[Any, Any]]:
    """Every shape of canvas, with its value."""
    add, total, identity = t.add, t.total, t.identity
    ten = [add.s(number, number) for number in range(5)]
    return {
        "task": (add.s(1, 2), 3),
        "chain": (chain(add.s(1, 2), add.s(3), add.s(4)), 10),
        "group": (group(ten), [0, 2, 4, 6, 8]),
        "group of chains": (group(chain(add.s(n, 1), add.s(2)) for n in range(3)), [3, 4, 5]),
        "group of groups": (group(group(add.s(1, 1), add.s(2, 2)), add.s(3, 3)), [2, 4, 6]),
        "group in a chain": (chain(add.s(1, 1), group(add.s(1), add.s(2))), [3, 4]),
        "map": (identity.map([1, 2]), [1, 2]),
        "starmap": (add.starmap([(1, 2), (3, 4)]), [3, 7]),
        "chunks": (add.chunks([(n, n) for n in range(6)], 4), [[0, 2, 4, 6], [8, 10]]),
        "chord": (chord(ten, total.s()), 20),
        "chord in order": (
            chord([t.sleeping.s(0.2, "a"), identity.s("b"), t.sleeping.s(0.1, "c")], identity.s()),
            ["a", "b", "c"],
        ),
        "empty chord": (chord([], total.s()), 0),
        "chord of one": (chord([add.s(1, 1)], total.s()), 2),
        "chord of a hundred": (chord([identity.s(n) for n in range(100)], t.count.s()), 100),
        "chord of a generator": (chord((add.s(n, n) for n in range(3)), total.s()), 6),
        "chord of a generator, in order": (
            chord((t.sleeping.s(0.2 / (n + 1), n) for n in range(3)), identity.s()),
            [0, 1, 2],
        ),
        "chord of chords": (
            chord([chord(ten, total.s()), chord(ten[:2], total.s()), add.s(1, 0)], total.s()),
            23,
        ),
        "chain of chords": (
            chain(chord(ten, total.s()), group(add.s(1), add.s(2)), total.s(), add.s(1)),
            44,
        ),
        "groups in a chord": (
            chord([chain(add.s(1, 1), group(add.s(1), add.s(2))), add.s(3, 3)], identity.s()),
            [[3, 4], 6],
        ),
        "chunks in a chord": (
            chord(add.chunks([(n, n) for n in range(6)], 2).group(), total.s()),
            30,
        ),
        "a chain as body": (chord([add.s(1, 1)], chain(total.s(), add.s(5))), 7),
        "a group as body": (chord([add.s(1, 1)], group(total.s(), total.s(1))), [2, 3]),
        "a chord as body": (
            chord([add.s(1, 1)], chord([total.s(), total.s(1)], total.s())),
            5,
        ),
        "a retry in a header": (chord([t.retrying.s(5), t.retrying.s(6)], total.s()), 11),
        "a retry of a body": (chord([add.s(1, 1)], t.retrying.s(times=1)), [2]),
        "ignored results in a header": (chord([t.quiet.s(5), add.s(1, 1)], total.s()), 7),
        "added to a chord": (
            chord([t.joining.s(1), t.joining.s(2), add.s(1, 1)], total.s()),
            35,
        ),
    }


def test_results_may_be_in_another_file(
    canvas: Any, make_lab: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Than the queue: every shape has its value there, too."""
    monkeypatch.setenv("TEST_RESULTS", f"sqlite:///{tmp_path}/results.db")
    lab = make_lab(module="results_app")
    lab.worker(*canvas.arguments)
    assert not lab.app.backend.store.database.path.endswith("queue.db")
    cases = signatures(lab.tasks)
    sent = {name: signature.apply_async() for name, (signature, _) in cases.items()}
    for name, result in sent.items():
        assert get(result) == cases[name][1], name
    failed = chord([lab.tasks.broken.s(), lab.tasks.add.s(1, 1)], lab.tasks.total.s())()
    assert isinstance(end_of(lab, failed), ChordError)


def test_every_shape_has_its_value(canvas: Any) -> None:
    """All at once, so that they also run beside each other."""
    cases = signatures(canvas.tasks)
    sent = {name: signature.apply_async() for name, (signature, _) in cases.items()}
    assert {name: get(result) for name, result in sent.items()} == {
        name: value for name, (_, value) in cases.items()
    }


def test_a_chord_of_a_thousand(canvas: Any) -> None:
    """Is counted once each."""
    header = [canvas.tasks.identity.s(number) for number in range(1000)]
    assert get(chord(header, canvas.tasks.total.s())()) == 499500
    rows = canvas.database.execute(
        "SELECT returned, state FROM chords WHERE size = 1000 AND state = 'done'"
    )
    assert [tuple(row) for row in rows] == [(1000, "done")]
    assert canvas.database.execute("SELECT count(*) FROM chord_parts")[0][0] == 0


@pytest.mark.parametrize(
    ("kind", "value"), [("task", 11), ("chain", 11), ("group", [5, 6]), ("chord", 11)]
)
def test_a_task_is_replaced(canvas: Any, kind: str, value: Any) -> None:
    """By whatever kind; alone, in a chain, in a chord's header."""
    t = canvas.tasks
    alone = t.replaced.delay(kind, 1)
    amid = chain(
        t.identity.s(0), t.replaced.si(kind, 1), t.total.s() if kind == "group" else t.add.s(0)
    ).apply_async()
    header = chord([t.replaced.s(kind, 1), t.add.s(1, 1)], t.identity.s())()
    assert [get(alone), get(amid), get(header)] == [value, 11, [value, 2]]


def test_a_failure_reaches_whoever_waits(canvas: Any) -> None:
    """Also those who know nothing but the last result's id: nobody waits for ever."""
    t = canvas.tasks
    good, bad, total = t.add.s(1, 1), t.broken.s(), t.total.s()
    cases = {
        "chain": chain(bad, t.add.s(1), t.add.s(2)),
        "chain of a chord": chain(bad, group(t.add.s(1), t.add.s(2)), t.total.s(), t.add.s(1)),
        "chain that ends in a group": chain(good, bad, group(t.add.s(1), t.add.s(2))),
        "chain that ends in a group of chains": chain(
            bad, group(chain(t.add.s(1), t.add.s(2)), t.add.s(3))
        ),
        "chain that ends in a group, in a header": chord(
            [chain(bad, group(t.add.s(1), t.add.s(2))), good], total
        ),
        "header": chord([good, bad], total),
        "chain in a header": chord([chain(bad, t.add.s(1)), good], total),
        "chord in a header": chord([chord([bad], total), good], total),
        "chord in a chord's group": chord(group(chord([bad], total), good), total),
        "chord in a header's chain": chord(
            [chain(good, group(bad, t.add.s(1)), total), good], total
        ),
        "body": chord([good], bad),
        "body that is a chain": chord([bad], chain(total, t.add.s(1))),
        "body that is a chord": chord([bad], chord([total, total], total)),
        "body that is a chain, in a chord": chord(
            [chord([bad], chain(total, t.add.s(1))), good], total
        ),
        "body that is a group, in a chord": chord([chord([bad], group(total, total)), good], total),
        "chain after a chord": chain(chord([bad], total), t.add.s(1)),
        "between two chords": chain(chord([good], total), bad, group(t.add.s(1), good), total),
        "before a chord, in a header": chord([chain(bad, chord([t.add.s(1)], total)), good], total),
        "chords in a chain": chain(group(bad, good), group(t.total.s(), t.total.s(1)), t.total.s()),
    }
    sent = {name: signature.apply_async() for name, signature in cases.items()}
    for name, result in sent.items():
        with pytest.raises((ValueError, ChordError), match="on purpose"):
            get(result)
        ended = end_of(canvas, result)
        assert isinstance(ended, (ValueError, ChordError)), name
        assert "on purpose" in repr(ended), name


def test_a_group_as_body_fails_whole(canvas: Any) -> None:
    """Each of its tasks."""
    t = canvas.tasks
    result = chord([t.broken.s(), t.add.s(1, 1)], group(t.total.s(), t.total.s(1)))()
    for each in result.results:
        assert isinstance(end_of(canvas, each), ValueError)


def test_callbacks_and_errbacks(canvas: Any) -> None:
    """Link, and link_error in both styles; of a task, a chain and a chord."""
    t = canvas.tasks
    linked = t.add.apply_async((1, 1), link=t.quiet.s())
    assert get(linked) == 2
    canvas.wait(lambda: canvas.lines() == ["quiet 2"])
    canvas.forget_lines()
    both = [t.old_errback.s(), t.new_errback.s()]
    failed = t.broken.apply_async(link_error=both)
    canvas.wait(
        lambda: (
            sorted(canvas.lines())
            == sorted([f"errback {failed.id}", f"errback {failed.id} ValueError('on purpose')"])
        )
    )
    canvas.forget_lines()
    chained = chain(t.add.s(1, 1), t.broken.s()).on_error(t.old_errback.s()).apply_async()
    canvas.wait(lambda: canvas.lines() == [f"errback {chained.id}"])
    canvas.forget_lines()
    body = t.total.s().on_error(t.old_errback.s())
    result = chord([t.broken.s(), t.add.s(1, 1)], body)()
    canvas.wait(lambda: canvas.lines() == [f"errback {result.id}"])


@pytest.mark.filterwarnings("ignore:task_allow_error_cb_on_chord_header")
def test_an_errback_of_chords_in_one_another_is_called_once(canvas: Any) -> None:
    """Celery links it to each body, and each chord around the failed one fails as well."""
    t = canvas.tasks
    good = t.add.s(1, 1)
    inner = chord([t.broken.s(), good], t.total.s())
    outer = chord([chord([inner, good], t.total.s()), good], t.total.s())
    outer.link_error(t.old_errback.s())
    result = outer.apply_async()
    assert isinstance(end_of(canvas, result), ChordError)

    def is_idle() -> bool:
        stats = canvas.database.stats()
        return stats.queued_tasks + stats.processing_tasks == 0

    canvas.wait(is_idle)
    assert len(canvas.lines()) == 1


def test_errors_come_as_they_were_raised(canvas: Any) -> None:
    """Type, arguments and traceback; what cannot be encoded is a failure, too."""
    t = canvas.tasks
    result = t.odd.delay()
    error = get_quietly(result)
    assert (type(error).__name__, error.args) == ("Odd", ({"number": 7}, 8))
    assert "raise Odd(" in result.traceback
    assert result.date_done is not None
    nothing = t.unserializable.delay()
    assert "JSON serializable" in repr(get_quietly(nothing))
    assert nothing.state == "FAILURE"


def get_quietly(result: Any) -> Any:
    """The value or the error."""
    return result.get(timeout=GENEROUS_S, propagate=False)


def test_states_on_the_way(canvas: Any) -> None:
    """STARTED with its process, a state of the task's own, RETRY; then the end."""
    t = canvas.tasks
    heard: list[Any] = []

    def listen(meta: Any) -> None:
        heard.append((meta["status"], meta["result"]))
        if meta["status"] == "PROGRESS":
            step = meta["result"]["step"]
            (canvas.folder / f"ledger-step-{step}").touch()

    result = t.progressing.delay(3)
    assert result.get(timeout=GENEROUS_S, on_message=listen) == 3
    assert [message for message in heard if message[0] != "STARTED"] == [
        *(("PROGRESS", {"step": step}) for step in range(3)),
        ("SUCCESS", 3),
    ]
    for path in canvas.folder.glob("ledger-step-*"):
        path.unlink()
    slow = t.sleeping.delay(0.5)
    canvas.wait(lambda: slow.state == "STARTED")
    assert set(slow.info) == {"pid", "hostname"}
    assert get(slow) is None


def test_ignored_and_refused_results(canvas: Any) -> None:
    """Nothing is kept of the first; the second follows the state it has stored itself."""
    t = canvas.tasks
    quiet = t.quiet.delay("x")
    canvas.wait(lambda: canvas.lines() == ["quiet x"])
    assert get(quiet) is None
    assert not quiet.backend.task_result_exists(quiet.id)
    ended = t.ignoring.delay()
    assert repr(get_quietly(ended)) == "ValueError('stored')"
    row = canvas.wait(lambda: row_of(canvas, ended, "failed"))
    assert row.status == "failed"


def row_of(lab: Any, result: Any, status: str) -> Any:
    """The row of a task once it has a status."""
    row = lab.database.get(result.id)
    return row if row.status == status else None


def test_children_and_stamps(canvas: Any) -> None:
    """What a task has published; what it was stamped with."""
    t = canvas.tasks
    tree = t.parent.delay()
    canvas.wait(tree.ready)
    leaves = [child for node in tree.children for child in node.results]
    assert [get(leaf) for leaf in leaves] == [0, 2, 4]
    stamped = t.stamps.s()
    stamped.stamp(order="17")
    assert get(stamped.apply_async()) == {"order": "17"}


def test_a_result_is_stored_with_the_end_of_its_row(canvas: Any) -> None:
    """Whoever sees the one sees the other."""
    t = canvas.tasks
    done, failed = t.add.delay(1, 1), t.broken.delay()
    assert get(done) == 2
    assert canvas.database.get(done.id).status == "completed"
    assert isinstance(get_quietly(failed), ValueError)
    row = canvas.database.get(failed.id)
    assert (row.status, row.error_message) == ("failed", "ValueError('on purpose')")


def test_a_saved_group_is_found_again(canvas: Any) -> None:
    """And its results with it."""
    result = group(canvas.tasks.add.s(n, n) for n in range(4)).apply_async()
    result.save()
    found = canvas.app.GroupResult.restore(result.id)
    assert get(found) == [0, 2, 4, 6]
    found.forget()
    found.delete()
    assert canvas.app.GroupResult.restore(result.id) is None
    with pytest.raises(ResultTimeout):
        canvas.app.AsyncResult(result.results[0].id).get(timeout=0)


@pytest.mark.skipif(celery.VERSION < (5, 7), reason="Celery loses the first group's tasks")
def test_a_generator_of_groups_keeps_their_shape(canvas: Any) -> None:
    """The first one tells that the results are nested; a chord asks for no more in advance."""
    t = canvas.tasks
    header = (group(t.add.s(n, 0), t.add.s(n, n)) for n in range(3))
    assert get(chord(header, t.identity.s())()) == [[0, 0], [1, 2], [2, 4]]


@only_prefork  # takes 5 s, and knows nothing of pools
def test_the_mark_of_a_dead_finisher_is_found(canvas: Any) -> None:
    """A chord whose parts are all there, and whose body nobody publishes: a worker does."""
    backend = canvas.app.backend
    t = canvas.tasks
    body = t.total.s().set(task_id=f"body-{canvas.folder.name}")
    backend.apply_chord(("lost", [canvas.app.AsyncResult("part")]), body)
    backend.set_chord_size("lost", 1)
    part = backend.encode(["part", "SUCCESS", 5])
    assert backend.store.chords.return_part("lost", "part", 0, part, backend.encode(body), None)
    assert get(canvas.app.AsyncResult(body.options["task_id"])) == 5


@only_prefork  # in a solo pool nobody is free to run the other one
def test_a_task_may_wait_for_another(canvas: Any) -> None:
    """Where it says that it knows what it does, and a process is free."""
    assert get(canvas.tasks.asking.delay(1, 2)) == 3


def test_a_task_of_a_transient_queue_has_its_result(canvas: Any) -> None:
    """Its message has no row; the row of the same number is another's."""
    first = canvas.database.enqueue("no.such.task", {}, queue="nobody")
    result = canvas.tasks.add.apply_async((2, 2), queue="transient")
    assert get(result) == 4
    assert canvas.database.get(first.id).status == "queued"
