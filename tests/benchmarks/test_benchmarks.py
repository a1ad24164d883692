"""The benchmarks run and say what they found; how fast anything is, is asserted nowhere."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import kombu
import pytest

from tests.benchmarks.measures import percentile
from tests.benchmarks.suite import SUITE
from tests.benchmarks.summary import ratios, table
from tests.benchmarks.table import block

ROOT = Path(__file__).parents[2]
BROKERS = ("sqlite", "memory")
RUN = ("publish", "publish-together", "consume", "wake", "celery-embedded", "store", "history")


def run_of(measure: dict[str, Any]) -> dict[str, Any]:
    """A full run with one measure."""
    brokers = {
        name: {"label": name, "ceiling": name == "memory", "absent": None}
        for name in ("sqlite", "redis", "rabbitmq", "rabbitmq-unconfirmed", "memory")
    }
    environment = {
        "date": "2026-01-02 03:04",
        "cores": 2,
        "processor": "Z80",
        "python": "CPython 3.11.7",
        "sqlite": "3.54.1",
        "packages": {"kombu": "5.7.0", "celery": "5.7.0"},
        "brokers": {},
    }
    measure = {"skipped": {}, "failed": {}, **measure}
    return {
        "quick": False,
        "rounds": 3,
        "brokers": brokers,
        "environment": environment,
        "measures": {"publish.small": measure},
    }


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a quick run of two brokers wrote."""
    folder = tmp_path_factory.mktemp("quick")
    command = [sys.executable, "-m", "tests.benchmarks", "--quick", "--only", ",".join(RUN)]
    command += ["--brokers", ",".join(BROKERS), "--json", str(folder / "out.json")]
    command += ["--folder", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not [path for path in folder.iterdir() if path.is_dir()], "a space was left behind"
    found: dict[str, Any] = json.loads((folder / "out.json").read_text(encoding="utf-8"))
    assert done.stdout == table(found)
    return found


def test_every_measure_has_a_figure_or_a_reason(quick: dict[str, Any]) -> None:
    """For every broker on which it makes sense; a rate and a duration are above zero."""
    for benchmark in RUN:
        for metric in SUITE[benchmark].metrics:
            measure = quick["measures"][f"{benchmark}.{metric.key}"]
            assert not measure["failed"]
            assert measure["text"]
            assert "{" not in measure["text"]
            brokers = {name for name in BROKERS if name in SUITE[benchmark].brokers}
            assert set(measure["samples"]) | set(measure["skipped"]) == brokers
            has_it = not metric.key.endswith("-batch") or kombu.VERSION >= (5, 7)
            assert ("sqlite" in measure["samples"]) == has_it
            for samples in measure["samples"].values():
                assert len(samples) == quick["rounds"] == 1
                assert measure["unit"] in ("", "B") or samples[0] > 0


def test_a_run_says_where_it_was_made(quick: dict[str, Any]) -> None:
    """Machine, versions, date, sizes, and that it was a quick one."""
    environment = quick["environment"]
    assert {"date", "processor", "cores", "python", "sqlite", "packages"} <= set(environment)
    assert set(environment["brokers"]) == set(BROKERS)
    assert quick["quick"]
    assert "QUICK RUN" in table(quick)
    assert quick["sizes"]["messages"] == 200


def test_the_keys_of_a_benchmark_are_its_own() -> None:
    """Else one figure would hide another."""
    for benchmark in SUITE.values():
        keys = [metric.key for metric in benchmark.metrics]
        assert len(keys) == len(set(keys))


def test_a_ratio_above_one_is_better_whichever_way_is_good() -> None:
    """Against the best that is no ceiling, and against Redis."""
    samples = {"sqlite": [10, 30, 20], "redis": [5], "memory": [100]}
    more = {"text": "speed", "unit": "/s", "higher": True, "samples": samples}
    assert ratios(run_of(more), more, "sqlite") == {"best": 1, "redis": 4}
    assert ratios(run_of(more), more, "redis") == {"best": 0.25, "redis": 1}
    less = {**more, "higher": False}
    assert ratios(run_of(less), less, "sqlite") == {"best": 0.25, "redis": 0.25}


def test_the_readmes_table_shows_medians_and_gaps() -> None:
    """RabbitMQ's confirmed and unconfirmed publishes share a cell."""
    samples = {"sqlite": [1, 3, 2], "rabbitmq": [4], "rabbitmq-unconfirmed": [16_000]}
    measure = {"text": "publish", "unit": "/s", "higher": True, "samples": samples}
    row = block(run_of(measure)).splitlines()[2]
    assert row == "| publish, /s | 2 | – | 4 confirmed, 16,000 | – | – |"  # noqa: RUF001


@pytest.mark.parametrize(("percent", "expected"), [(50, 50), (99, 99), (99.9, 100), (100, 100)])
def test_a_percentile_is_a_value_that_was_seen(percent: float, expected: int) -> None:
    """The smallest that so many do not exceed."""
    assert percentile(range(1, 101), percent) == expected
