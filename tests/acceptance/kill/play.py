"""Lets the processes work and be hit, then finish; says what it came to."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

from kombu_sqlite import QueueDatabase

from .evidence import Evidence, collect
from .scenery import Scenery
from .verdict import BY_BROKER, judge, repeats_of

#: How many processes have each role.
CAST = {"produce": 2, "call": 1, "cancel": 1, "consume": 2, "work": 2, "beat": 1, "read": 1}
_DRAIN_WITHIN_S = 120.0
#: What is open: a chord whose body is still to be published as well.
OPEN = """
SELECT (SELECT coalesce(sum(tasks), 0) FROM task_counts WHERE status IN ('queued', 'processing'))
     + (SELECT count(*) FROM chords WHERE state = 'due')"""


@dataclass
class Summary:
    """What a run came to."""

    scenery: Scenery
    evidence: Evidence
    violations: list[str]
    orphans: int
    seconds: float

    def __str__(self) -> str:
        found, sent = self.evidence, self.scenery.sent
        rows = found.rows.values()
        executed = sum(bool(found.begun[row.identity]) for row in rows)
        cancelled = sum(row.status == "cancelled" for row in rows)
        ended = {
            row.identity for row in rows if found.begun[row.identity] or row.status in BY_BROKER
        }
        lost = len(found.sent - ended)
        tasks = sum(row.type != "message" for row in rows)
        failed = sum(row.status == "failed" for row in rows)
        deaths = sum(row.deaths for row in rows)
        repeats = repeats_of(found)
        repeated = sum(map(len, repeats.values()))
        late = sum(found.late.values())
        log = f"{self.scenery.largest_quiet_log / 2**20:.1f} MiB"
        stalled_log = f"{self.scenery.largest_log / 2**20:.1f} MiB"
        traces: Counter[str] = Counter()
        for line, logs in found.tracebacks.items():
            traces[line.partition(":")[0]] += len(logs)
        lines = (
            f"seed {self.scenery.seed}, {self.seconds:.0f} s",
            f"signals: {', '.join(f'SIG{way} {times}' for way, times in sorted(sent.items()))}",
            f"processes: {len(self.scenery.lives)} started, {self.orphans} orphans in the end",
            f"messages: {len(rows)}, of them Celery tasks {tasks}",
            f"acknowledged early and lost with their worker: {failed}; cancelled: {cancelled}",
            f"publishes returned {len(found.sent)}, executed {executed}, lost {lost}",
            f"executions repeated: {repeated}, by {len(repeats)} killed or stopped processes",
            f"deaths counted: {deaths}; put back on purpose: {len(found.requeued)}",
            f"superseded ends refused: plain {len(found.refused)}, Celery {late}",
            f"sessions lost by plain consumers: {found.lost_sessions}",
            f"statistics: read {found.reads} times, unequal {len(found.unequal)}",
            f"integrity: {'BROKEN' if found.sound else 'ok'}",
            f"log: at most {log}, while somebody was stopped {stalled_log}",
            f"tracebacks: {', '.join(f'{n} x {name}' for name, n in traces.items()) or 'none'}",
            f"violations: {len(self.violations)}",
            *self.violations[:40],
        )
        return "\n".join(lines)


def run(
    folder: str, seed: int, kills: int, messages: int, cast: dict[str, int], every_s: float
) -> Summary:
    """Let the processes work and be hit; then let them finish, end them, and judge.

    Arguments:
        folder: an empty one, for everything the run leaves behind.
        kills: how many SIGKILLs there are to be; other signals come on top.
        messages: the least number of them.
        cast: how many processes have each role.
        every_s: mean of the time between two signals.
    """
    began = time.monotonic()
    scenery = Scenery(folder, seed, cast)
    try:
        _play(scenery, kills, messages, every_s)
    finally:
        orphans = scenery.kill_all()
    evidence = collect(scenery)
    violations = [*scenery.faults, *judge(evidence, scenery.lives, scenery.largest_quiet_log)]
    return Summary(scenery, evidence, violations, orphans, time.monotonic() - began)


def _play(scenery: Scenery, kills: int, messages: int, every_s: float) -> None:
    while scenery.sent["KILL"] < kills:
        scenery.wait(lambda: False, scenery.random.expovariate(1 / every_s))
        scenery.strike()
    with QueueDatabase(scenery.url) as database:
        scenery.wait(lambda: database.stats().total_tasks >= messages, 3600)
        scenery.close("produce", "call", "cancel", "beat")
        drained = scenery.wait(lambda: database.execute(OPEN)[0][0] == 0, _DRAIN_WITHIN_S)
        if not drained:
            scenery.faults.append(f"not drained in {_DRAIN_WITHIN_S:g} s: {database.stats()}")
    scenery.close("consume", "work", "read")
