"""Reads what a run has left behind: the file's rows and results, the ledgers, the logs."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from kombu_sqlite import QueueDatabase

from .ledger import read_lines
from .roles import COUNTS
from .scenery import Scenery

ROWS = """
SELECT id, queue, type, status, delivery_no, deaths, attempts, error_message,
       CASE type WHEN 'message' THEN json_extract(payload, '$.id') ELSE task_id END
FROM task_queue"""
#: Where an exception's own lines end a traceback, and what it is.
_TRACEBACK = re.compile(r"^Traceback \(most recent call last\):$")
_LOST_LEASE = re.compile(r"Lease lost: |Result refused|Cancelled, or lease lost|was not published")


class Row(NamedTuple):
    """One message as the file has it in the end."""

    id: int
    queue: str
    type: str
    status: str
    delivery_no: int
    deaths: int
    attempts: int
    error: str | None
    identity: str

    @property
    def tag(self) -> str:
        """The tag of its last delivery."""
        return f"{self.id}.{self.delivery_no}"


class Begin(NamedTuple):
    """One execution, as it was noted when it began."""

    who: str
    tag: str
    retries: int

    @property
    def number(self) -> int:
        """The delivery number."""
        return int(self.tag.partition(".")[2])


@dataclass
class Evidence:
    """All of it."""

    rows: dict[str, Row]
    unknown: list[Row]
    results: dict[str, tuple[str, Any]]
    sound: list[str]
    counts: list[tuple[Any, ...]]
    stats: Any
    statistics: Any
    holders: list[Any]
    tried: set[str] = field(default_factory=set)
    sent: set[str] = field(default_factory=set)
    begun: dict[str, list[Begin]] = field(default_factory=lambda: defaultdict(list))
    acked: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    refused: list[tuple[str, str]] = field(default_factory=list)
    requeued: set[str] = field(default_factory=set)
    #: Whom somebody began to cancel, and whom somebody was told to have cancelled.
    cancelling: set[str] = field(default_factory=set)
    cancelled: set[str] = field(default_factory=set)
    unequal: list[str] = field(default_factory=list)
    reads: int = 0
    lost_sessions: int = 0
    #: Last line of each traceback -> in which logs.
    tracebacks: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    #: Ends and starts that were refused because of a newer delivery, by the logs.
    late: Counter[str] = field(default_factory=Counter)
    quarantined: list[str] = field(default_factory=list)


def collect(scenery: Scenery) -> Evidence:
    """Read everything; nobody else is on the file any more."""
    with QueueDatabase(scenery.path) as database:
        rows = [Row(*row) for row in database.execute(ROWS)]
        evidence = Evidence(
            rows={row.identity: row for row in rows if row.type != "killed.tick"},
            unknown=[row for row in rows if row.identity is None],
            results={
                task_id: (status, json.loads(meta)["result"])
                for task_id, status, meta in database.execute(
                    "SELECT task_id, status, meta FROM task_results"
                )
            },
            sound=[
                *(row[0] for row in database.execute("PRAGMA integrity_check") if row[0] != "ok"),
                *(
                    f"foreign key: {tuple(row)}"
                    for row in database.execute("PRAGMA foreign_key_check")
                ),
            ],
            counts=[tuple(row) for row in database.execute(COUNTS)],
            stats=database.stats(),
            statistics=database.statistics(),
            holders=[
                *database.execute("SELECT worker_id FROM workers WHERE lock_byte IS NOT NULL"),
                *database.execute("SELECT worker_id FROM consumers"),
            ],
        )
        doubled = len(rows) - len({row.identity for row in rows})
        if doubled:
            evidence.sound.append(f"{doubled} rows share an id with another")
    _read_ledgers(evidence, scenery.ledgers)
    _read_logs(evidence, scenery.folder)
    return evidence


def _read_ledgers(evidence: Evidence, folder: str) -> None:
    for who, (word, *rest) in read_lines(folder):
        if word == "begin":
            evidence.begun[rest[0]].append(Begin(who, rest[1], int(rest[2])))
        elif word == "acked":
            evidence.acked[rest[0]].append(rest[1])
        elif word == "refused":
            evidence.refused.append((rest[0], rest[1]))
        elif word == "unequal":
            evidence.unequal.append(" ".join(rest))
        elif word == "cancelled" and rest[1] == "cancelled":
            evidence.cancelled.add(rest[0])
        names = {
            "try": evidence.tried,
            "sent": evidence.sent,
            "requeued": evidence.requeued,
            "cancelling": evidence.cancelling,
        }
        if word in names:
            names[word].add(rest[-1])
        evidence.reads += word == "read"
        evidence.lost_sessions += word == "lost-session"


def _read_logs(evidence: Evidence, folder: str) -> None:
    for path in sorted(Path(folder).glob("*.out")):
        inside = False
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if _TRACEBACK.match(line):
                inside = True
            elif inside and line and not line[0].isspace():
                inside = False
                evidence.tracebacks[line].append(path.name)
            if _LOST_LEASE.search(line):
                evidence.late[path.name] += 1
            if "Quarantined" in line or "Upkeep of" in line:
                evidence.quarantined.append(f"{path.name}: {line}")
