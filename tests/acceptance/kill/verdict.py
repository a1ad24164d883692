"""Compares what a run has left behind with what is promised."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator

from .evidence import Begin, Evidence, Row
from .scenery import CONCURRENCY, Life

#: The bound the documents give for the write-ahead log while no reader takes long.
LOG_LIMIT = 64 * 2**20
#: The tasks that are acknowledged before they begin.
EARLY = "killed.early"
ENDED = ("completed", "failed", "cancelled")
#: Ends that the broker makes, and the results they owe.
BY_BROKER = {
    "failed": ("FAILURE", "WorkerLostError"),
    "cancelled": ("REVOKED", "TaskRevokedError"),
}
#: Messages one consumer may hold: what it was given by one claim comes to the prefetch count.
HELD = {"consume": 16, "work": CONCURRENCY}
#: What may end a traceback: a session that was silent too long, a pool's process that was killed,
#: a delivery that a newer one has superseded. Billiard's wrapper has the real one
#: within; Celery's warm shutdown is an exception, shown beside one that comes while it lasts.
EXPECTED = re.compile(
    r"billiard\.einfo\.ExceptionWithTraceback"
    r"|(kombu_sqlite\.errors\.)?(SessionLost|LeaseLost)\b"
    r"|billiard\.exceptions\.WorkerLostError\b"
    r"|celery\.exceptions\.WorkerShutdown\b"
)


def judge(evidence: Evidence, lives: dict[str, Life], largest_log: int) -> Iterator[str]:
    """Yield every promise that was broken, with what to look at.

    Arguments:
        largest_log: bytes of the write-ahead log at the most, while nobody was stopped.
    """
    yield from _judge_rows(evidence)
    for identity, begun in evidence.begun.items():
        row = evidence.rows.get(identity)
        if row is not None:
            yield from _judge_deliveries(evidence, row, begun)
    yield from _judge_repeats(evidence, lives)
    yield from _judge_results(evidence)
    yield from _judge_counts(evidence)
    yield from (f"integrity: {found}" for found in evidence.sound)
    yield from (f"quarantined: {line}" for line in evidence.quarantined)
    yield from (f"still held in the file: {tuple(holder)}" for holder in evidence.holders)
    for line, logs in evidence.tracebacks.items():
        if not EXPECTED.match(line):
            yield f"traceback in {', '.join(sorted(set(logs))[:5])}: {line}"
    if largest_log > LOG_LIMIT:
        yield f"the log grew to {largest_log / 2**20:.1f} MiB while nobody was stopped"


def _judge_rows(evidence: Evidence) -> Iterator[str]:
    for identity in sorted(evidence.sent - set(evidence.rows)):
        yield f"lost: {identity} was published, and is not in the file"
    for identity in sorted(set(evidence.rows) - evidence.tried):
        yield f"nobody has published {evidence.rows[identity]}"
    for row in (*evidence.rows.values(), *evidence.unknown):
        yield from _judge_end(evidence, row)


def _judge_end(evidence: Evidence, row: Row) -> Iterator[str]:
    if row.status == "cancelled":
        if row.identity not in evidence.cancelling:
            yield f"cancelled by nobody: {row}"
    elif row.identity in evidence.cancelled:
        yield f"cancelled, it was told, but not so: {row}"
    elif row.type == EARLY and row.status == "failed":
        if not str(row.error).startswith(("worker lost", "WorkerLostError")):
            yield f"failed, though its worker was not lost: {row}"
    elif row.status != "completed":
        yield f"not completed: {row}"
    elif row.tag not in {begin.tag for begin in evidence.begun[row.identity]}:
        yield f"completed, yet nobody noted its execution: {row}"


def _judge_deliveries(evidence: Evidence, row: Row, begun: list[Begin]) -> Iterator[str]:
    tags = Counter(begin.tag for begin in begun)
    if row.type == EARLY and len(begun) > 1:
        yield f"acknowledged before it began, yet executed again: {row.identity} {begun}"
    for tag, times in tags.items():
        if times > 1:
            yield f"one delivery was executed {times} times: {tag} of {row.identity}"
    acked = evidence.acked.get(row.identity, [])
    if len(acked) > 1:
        yield f"two deliveries ended {row.identity}: {acked}"
    for tag in acked:
        if tag != row.tag:
            yield f"delivered again after its ack: {row.identity}, {tag} was acked, last {row.tag}"
    for begin in begun:
        if begin.number > row.delivery_no:
            yield f"{row.identity} was executed under {begin.tag}, which {row} does not know"


def _judge_repeats(evidence: Evidence, lives: dict[str, Life]) -> Iterator[str]:
    """Only who was killed or stopped may have begun what another had to do again."""
    for who, tags in repeats_of(evidence).items():
        life = lives[who]
        place = who.partition("-")[0].rstrip("0123456789")
        hits = sum(life.signals[way] for way in ("KILL", "KILL main", "KILL child"))
        stops = life.signals["STOP"]
        # a stopped plain consumer goes on with what it had been given; a worker asks the file
        allowed = hits * (1 if place == "consume" else CONCURRENCY) + stops * HELD[place]
        if len(tags) > allowed:
            yield (
                f"{who} (signals: {dict(life.signals)}) began {len(tags)} deliveries that were "
                f"superseded, at most {allowed} are to be expected: {tags[:5]}"
            )
    for identity, tag in evidence.refused:
        row = evidence.rows.get(identity)
        if row is not None and row.tag == tag:
            yield f"the end of a valid delivery was refused: {tag} of {identity}"


def repeats_of(evidence: Evidence) -> dict[str, list[str]]:
    """Return the tags of the executions that had to be repeated, by who began them.

    The last one is not, nor the last of each retry's number; one put back on purpose neither.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for begun in evidence.begun.values():
        last: dict[int, int] = {}
        for begin in begun:
            last[begin.retries] = max(begin.number, last.get(begin.retries, 0))
        for begin in begun:
            if begin.number < last[begin.retries] and begin.tag not in evidence.requeued:
                found[begin.who].append(begin.tag)
    return found


def _judge_results(evidence: Evidence) -> Iterator[str]:
    for row in evidence.rows.values():
        if row.type == "message":
            continue
        state, value = evidence.results.get(row.identity, ("nothing", None))
        if row.status in BY_BROKER:
            if (state, (value or {}).get("exc_type")) != BY_BROKER[row.status]:
                yield f"the result is {state} {value}, the row {row}"
        elif state != "SUCCESS" or value[:2] != [row.identity, row.tag]:
            yield f"the result is {state} {value}, the row {row}"
        elif row.type == "killed.collect" and len(value[2]) != 3:
            yield f"a chord's body was given the results of {value[2]}"
    for task_id in set(evidence.results) - set(evidence.rows):
        yield f"a result without a row: {task_id} {evidence.results[task_id]}"


def _judge_counts(evidence: Evidence) -> Iterator[str]:
    yield from (f"counts differ from the rows: {found}" for found in evidence.unequal)
    for status, rows, counted in evidence.counts:
        if rows != counted:
            yield f"{rows} rows are {status}, counted {counted}"
    stats, total = evidence.stats, sum(rows for _, rows, _ in evidence.counts)
    states = Counter(row.status for row in evidence.rows.values())
    ended = stats.completed_tasks + states["failed"] + states["cancelled"]
    if not stats.total_tasks == total == ended:
        yield f"{total} rows, among those in the ledgers {dict(states)}: {stats}"
    by_queue = evidence.statistics.depth_by_queue.values()
    if sum(depth[state] for depth in by_queue for state in ENDED) != total:
        yield f"{total} rows: {evidence.statistics.depth_by_queue}"
    known = sum(row.type == "message" for row in evidence.rows.values())
    by_type = evidence.statistics.depth_by_type.get("message", {}).get("completed", 0)
    if by_type != known:
        yield f"{known} plain messages in the ledgers, {by_type} in the statistics"
