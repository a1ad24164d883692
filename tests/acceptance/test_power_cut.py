"""Power cuts at any moment, simulated: the file opens, is whole, and has what was promised."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from kombu_sqlite import QueueDatabase

from .power import Event, Mark, Record, build_image, survivors

ROUNDS = 60
CUTS = 40


def work(folder: Path, synchronous: str, chance: random.Random) -> list[Event]:
    """Publish, claim and end messages, with checkpoints in between; return what was recorded."""
    path = str(folder / "queue.db")
    with Record() as record, QueueDatabase(path, synchronous=synchronous) as database:
        for _ in range(ROUNDS):
            for _ in range(chance.randrange(4)):
                payload = {"pad": "x" * chance.choice([0, 100, 9000])}
                record.mark("published", database.enqueue("t", payload).id)
            for delivery in database.claim(limit=chance.randrange(1, 4)):
                if chance.random() < 0.2:
                    database.requeue(delivery)
                else:
                    database.complete(delivery)
                    record.mark("completed", delivery.tag.row_id)
            if chance.random() < 0.15:
                mode = chance.choice(["PASSIVE", "FULL", "RESTART", "TRUNCATE"])
                database.execute(f"PRAGMA wal_checkpoint({mode})")
        return list(record.events)


def told(events: list[Event], until: int, what: str) -> set[int]:
    """The ids that the application was told something of."""
    return {e.id for e in events[:until] if isinstance(e, Mark) and e.what == what}


@pytest.mark.parametrize("synchronous", ["NORMAL", "FULL"])
def test_what_was_promised_survives_a_power_cut(tmp_path: Path, synchronous: str) -> None:
    """FULL: whatever had returned; NORMAL: what the log's last sync covers, and no gap after it."""
    seed = random.SystemRandom().randrange(10**9)
    chance = random.Random(seed)  # noqa: S311 - chance, no secret
    origin = tmp_path / "origin"
    origin.mkdir()
    events = work(origin, synchronous, chance)
    lost = 0
    for number, cut in enumerate(sorted(chance.sample(range(len(events)), CUTS))):
        folder = tmp_path / str(number)
        folder.mkdir()
        build_image(events[:cut], folder, chance)
        kept = cut if synchronous == "FULL" else survivors(events[:cut], "queue.db-wal")
        with QueueDatabase(str(folder / "queue.db")) as database:
            where = f"seed {seed}, {synchronous}, cut at {cut}"
            assert database.execute("PRAGMA integrity_check")[0][0] == "ok", where
            states = dict(map(tuple, database.execute("SELECT id, status FROM task_queue")))
            assert told(events, kept, "published") <= set(states), where
            done = {id for id, status in states.items() if status == "completed"}
            assert told(events, kept, "completed") <= done, where
            assert set(states) == set(range(1, len(states) + 1)), where
            assert database.stats().total_tasks == len(states), where
            lost += len(told(events, cut, "published") - set(states))
            database.enqueue("after")
    assert synchronous == "NORMAL" or lost == 0
