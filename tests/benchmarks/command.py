"""The command line."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.benchmarks.brokers import BROKERS
from tests.benchmarks.plot import draw
from tests.benchmarks.rounds import run
from tests.benchmarks.suite import SUITE
from tests.benchmarks.summary import table

__all__ = ("main",)


def _names(known: Sequence[str]) -> Callable[[str], list[str]]:
    def split(text: str) -> list[str]:
        chosen = text.split(",")
        for name in chosen:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return chosen

    return split


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m tests.benchmarks",
        description="The same work over kombu-sqlite and its peers, broker by broker in turn.",
        epilog=f"Benchmarks: {', '.join(SUITE)}. Brokers: {', '.join(BROKERS)}.",
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each is run (3)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and one round")
    parser.add_argument(
        "--only", type=_names(list(SUITE)), metavar="NAME,...", help="these benchmarks"
    )
    parser.add_argument(
        "--brokers", type=_names(list(BROKERS)), metavar="NAME,...", help="these brokers"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw there (.png or .svg)")
    parser.add_argument("--folder", help="where files are made; a disk, not a RAM disk")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, write; 1 if a benchmark failed."""
    given = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what is left on servers is cleaned up
    chosen = given.only or list(SUITE)
    found = run(
        [SUITE[name] for name in SUITE if name in chosen],
        given.brokers or list(BROKERS),
        1 if given.quick else given.rounds,
        given.quick,
        given.folder,
    )
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(table(found))
    if given.plot:
        draw(found, given.plot)
    return int(any(measure["failed"] for measure in found["measures"].values()))
