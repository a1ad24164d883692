"""Processes of every kind killed, ended and stopped at random; the long form is run by hand."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kombu_sqlite import QueueDatabase

from .kill.evidence import Begin, Evidence, collect
from .kill.ledger import Ledger, read_lines
from .kill.play import run
from .kill.scenery import Life, Scenery
from .kill.verdict import judge

SMALL_CAST = {"produce": 1, "call": 1, "cancel": 1, "consume": 2, "work": 1, "beat": 1, "read": 1}


def test_random_kills_and_stops_break_no_promise(tmp_path: Path) -> None:
    """Nothing lost, nothing acknowledged comes again, counts and results are those of the rows."""
    seed = random.SystemRandom().randrange(10**9)
    summary = run(str(tmp_path), seed, kills=7, messages=500, cast=SMALL_CAST, every_s=0.7)
    assert not summary.violations, f"python -m tests.acceptance.kill --seed {seed}\n{summary}"
    assert summary.evidence.reads > 0


@pytest.fixture
def evidence(tmp_path: Path) -> Evidence:
    """Of a run in which nothing went wrong: one plain message, one Celery task."""
    scenery = Scenery(str(tmp_path), 1, {})
    with QueueDatabase(scenery.path) as database:
        database.enqueue_many(
            [{"type": "message", "payload": {"id": "m"}}, {"type": "killed.work"}]
        )
        database.execute("UPDATE task_queue SET task_id = 't' WHERE id = 2")
        for delivery in database.claim(limit=2):
            database.complete(delivery)
        meta = '{"result": ["t", "2.1"]}'
        database._store.results.store("t", "SUCCESS", meta, expires_s=None)
    ledger = Ledger(scenery.ledgers, "consume0-0")
    for words in ("try m", "sent m", "try t", "sent t", "begin m 1.1 0", "acked m 1.1"):
        ledger.note(*words.split())
    Ledger(scenery.ledgers, "work0-0").note("begin", "t", "2.1", 0)
    return collect(scenery)


def lives() -> dict[str, Life]:
    """Processes that were sent no signal."""
    with subprocess.Popen(["true"]) as process:
        return {name: Life(name, process) for name in ("consume0-0", "work0-0")}


def test_a_good_run_has_a_good_verdict(evidence: Evidence) -> None:
    """Whoever finds fault with everything finds nothing."""
    assert list(judge(evidence, lives(), 0)) == []


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda e: e.rows.pop("m"), "lost: m"),
        (lambda e: e.tried.discard("m"), "nobody has published"),
        (lambda e: e.rows.update(m=e.rows["m"]._replace(status="failed")), "not completed"),
        (lambda e: e.rows.update(t=e.rows["t"]._replace(status="cancelled")), "by nobody"),
        (lambda e: e.cancelled.add("t"), "but not so"),
        (lambda e: e.begun["m"].clear(), "nobody noted its execution"),
        (lambda e: e.begun["m"].append(e.begun["m"][0]), "executed 2 times"),
        (lambda e: e.acked["m"].append("1.2"), "two deliveries ended m"),
        (lambda e: e.rows.update(m=e.rows["m"]._replace(delivery_no=2)), "again after its ack"),
        (lambda e: e.begun["m"].append(Begin("work0-0", "1.2", 0)), "does not know"),
        (lambda e: e.begun["t"].insert(0, Begin("work0-0", "2.0", 0)), "were superseded"),
        (lambda e: e.refused.append(("m", "1.1")), "a valid delivery was refused"),
        (lambda e: e.results.clear(), "the result is nothing"),
        (lambda e: e.results.update(t=("SUCCESS", ["t", "2.0"])), "the result is SUCCESS"),
        (lambda e: e.results.update(x=("SUCCESS", [])), "a result without a row"),
        (lambda e: e.unequal.append("queued"), "counts differ"),
        (lambda e: e.counts.append(("queued", 1, 0)), "1 rows are queued, counted 0"),
        (lambda e: e.statistics.depth_by_type.clear(), "0 in the statistics"),
        (lambda e: e.sound.append("page 7"), "integrity: page 7"),
        (lambda e: e.holders.append(("w",)), "still held"),
        (lambda e: e.tracebacks["ValueError: x"].append("work0-0.out"), "traceback in work0-0"),
    ],
)
def test_each_fault_is_found(
    evidence: Evidence, spoil: Callable[[Evidence], object], found: str
) -> None:
    """The verdict names it."""
    spoil(evidence)
    assert any(found in fault for fault in judge(evidence, lives(), 0))


def test_a_line_cut_off_by_a_kill_is_no_line(tmp_path: Path) -> None:
    """What was noted before it counts."""
    Ledger(str(tmp_path), "a-0").note("sent", 1)
    with open(tmp_path / f"a-0.{os.getpid()}", "a") as file:
        file.write("sent 2")
    assert list(read_lines(str(tmp_path))) == [("a-0", ["sent", "1"])]
