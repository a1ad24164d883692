"""The README's table of speeds, made from the figures of a run.

``python -m tests.benchmarks.table docs/benchmarks.json`` prints it, with ``--write`` it also goes
into the README. A quick run has no figures, so it makes a sentence instead.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tests.benchmarks.environment import sentence
from tests.benchmarks.summary import medians, number

__all__ = ("BEGIN", "END", "block", "with_block")

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- benchmarks -->\n", "<!-- /benchmarks -->"

_ROWS = (
    "publish.small",
    "publish.small-batch",
    "consume.rate",
    "wake.p50",
    "celery-prefork.rate",
    "celery-results.p50",
    "celery-results.group",
    "celery-chords.small",
)
#: Headings, and which broker's figure stands there; with two, both are shown and named.
_COLUMNS = (
    ("kombu-sqlite", {"sqlite": ""}),
    ("Redis", {"redis": ""}),
    ("RabbitMQ", {"rabbitmq": " confirmed", "rabbitmq-unconfirmed": ""}),
    ("file system", {"filesystem": ""}),
    ("sqla+sqlite", {"sqla": ""}),
)
_ABSENT = "–"  # noqa: RUF001 - the dash of an empty cell


def _cell(middle: dict[str, float], names: dict[str, str]) -> str:
    found = [f"{number(middle[name])}{note}" for name, note in names.items() if name in middle]
    return ", ".join(found) or _ABSENT


def block(run: dict[str, Any]) -> str:
    """What stands between the markers: medians, and where they were taken."""
    if run["quick"]:
        return "`python -m tests.benchmarks` measures it beside Redis, RabbitMQ and others.\n"
    lines = [
        "| | " + " | ".join(heading for heading, _ in _COLUMNS) + " |",
        "|---" * (len(_COLUMNS) + 1) + "|",
    ]
    for name in _ROWS:
        measure = run["measures"].get(name)
        if measure is not None:
            middle = medians(measure)
            cells = [_cell(middle, names) for _, names in _COLUMNS]
            lines.append(f"| {measure['text']}, {measure['unit']} | " + " | ".join(cells) + " |")
    place = sentence(run["environment"])
    lines += ["", f"Medians of {run['rounds']} rounds, broker by broker in turn; {place}."]
    return "\n".join(lines) + "\n"


def with_block(text: str, run: dict[str, Any]) -> str:
    """The README with its block as it should be."""
    head, _, rest = text.partition(BEGIN)
    return head + BEGIN + block(run) + END + rest.partition(END)[2]


def main() -> None:
    """Print the block of a run, and put it into the README if asked to."""
    parser = argparse.ArgumentParser("python -m tests.benchmarks.table")
    parser.add_argument("results", type=Path, help="what --json wrote")
    parser.add_argument("--write", action="store_true", help="into the README as well")
    given = parser.parse_args()
    run = json.loads(given.results.read_text(encoding="utf-8"))
    sys.stdout.write(block(run))
    if given.write:
        text = README.read_text(encoding="utf-8")
        README.write_text(with_block(text, run), encoding="utf-8")


if __name__ == "__main__":
    main()
