"""Several workers, several producers, several queues on one file."""

from __future__ import annotations

from collections import Counter
from typing import Any

PRODUCE = "import app, sys\nfor n in range(1000): app.late.delay(int(sys.argv[1]) + n)\n"


def test_workers_and_producers_share_the_work(lab: Any) -> None:
    """Two of each, in processes of their own: all 2,000 tasks, once, and both workers take part."""
    lab.worker("-c", "2")
    lab.worker("-P", "threads", "-c", "2", name="w2")
    producers = [lab.script(PRODUCE, first) for first in ("0", "1000")]
    assert [producer.wait(60) for producer in producers] == [0, 0]
    lab.wait(lambda: lab.database.stats().completed_tasks == 2000, 60)
    assert Counter(lab.lines()) == Counter(map(str, range(2000)))
    assert all(lab.log(name).count("succeeded") > 50 for name in ("w1", "w2"))
    rows = lab.database.execute("SELECT DISTINCT attempts, deaths FROM task_queue")
    assert [tuple(row) for row in rows] == [(1, 0)]


def test_tasks_go_to_their_queues(lab: Any) -> None:
    """By route, by topic, by name; a worker consumes only what it is told to."""
    lab.tasks.routed.delay("routed")
    lab.worker("-P", "solo", "--queues", "celery,topic")
    lab.worker("-P", "solo", "--queues", "fourth", name="w2")
    publish = lab.tasks.note.apply_async
    publish(("cat",), exchange="topic", routing_key="animal.cat")
    publish(("deep",), exchange="topic", routing_key="animal.cat.tail")
    publish(("stone",), exchange="topic", routing_key="mineral.stone")
    publish(("fourth",), queue="fourth")
    lab.wait(lambda: sorted(lab.lines()) == ["cat", "deep", "fourth"])
    lab.wait(lambda: "succeeded" in lab.log("w2"))
    assert lab.database.stats(queue="other").queued_tasks == 1
    lab.app.control.add_consumer("other", destination=["w1@test"])
    lab.wait(lambda: "routed" in lab.lines())
    assert "stone" not in lab.lines()
    assert lab.database.stats().total_tasks == 4


def test_a_broadcast_reaches_every_worker(lab: Any) -> None:
    """A fanout exchange with a queue for each; a worker that has left is owed nothing."""
    lab.worker("-P", "solo")
    second = lab.worker("-P", "solo", name="w2")
    broadcast = {"exchange": "all", "routing_key": "any"}
    lab.tasks.note.apply_async(("to all",), **broadcast)
    lab.wait(lambda: lab.lines() == ["to all", "to all"])
    assert lab.stop(second) == 0
    lab.forget_lines()
    lab.tasks.note.apply_async(("to one",), **broadcast)
    lab.tasks.note.delay("end")
    lab.wait(lambda: "end" in lab.lines())
    lab.wait(lambda: lab.lines().count("to one") == 1)
    left = "SELECT count(*) FROM transient_messages"
    lab.wait(lambda: lab.database.execute(left)[0][0] == 0)


def test_several_queues_are_served_fairly(lab: Any) -> None:
    """A short queue does not wait behind a long one."""
    for number in range(300):
        lab.tasks.note.delay(f"long {number}")
    for number in range(5):
        lab.tasks.routed.delay(f"short {number}")
    lab.worker("-P", "solo", "-Q", "celery,other", "--prefetch-multiplier", "2")
    lab.wait(lambda: len(lab.lines()) == 305)
    last_short = max(n for n, line in enumerate(lab.lines()) if line.startswith("short"))
    assert last_short < 100
