"""The README's speeds are those of the committed run."""

from __future__ import annotations

import json

from tests.benchmarks.suite import SUITE
from tests.benchmarks.table import BEGIN, END, README, with_block

RESULTS = README.parent / "docs" / "benchmarks.json"


def test_the_readmes_speeds_are_the_committed_runs() -> None:
    """``python -m tests.benchmarks.table docs/benchmarks.json --write`` mends it."""
    text = README.read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1
    assert text == with_block(text, json.loads(RESULTS.read_text(encoding="utf-8")))


def test_the_committed_run_is_whole() -> None:
    """Every benchmark, and none of them failed on ours."""
    run = json.loads(RESULTS.read_text(encoding="utf-8"))
    for benchmark in SUITE.values():
        for metric in benchmark.metrics:
            measure = run["measures"][f"{benchmark.name}.{metric.key}"]
            assert "sqlite" in measure["samples"], metric
