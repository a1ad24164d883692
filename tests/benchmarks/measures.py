"""What a benchmark is, and what it yields."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.benchmarks.sizes import Sizes
from tests.benchmarks.spaces import Space

__all__ = ("Benchmark", "Metric", "Skip", "Values", "percentile")

#: Figures by the metric's key; a text says why there is none.
Values = dict[str, "float | str"]


class Skip(Exception):
    """A benchmark asks for something that this broker does not have; the text says what."""


@dataclass(frozen=True)
class Metric:
    """A figure.

    Arguments:
        key: its name within the benchmark.
        text: what it is, for people; may name sizes, as ``{group:,}``.
        unit: ``/s``, ``ms``, ``s``, ``%``, ``B``, ...
        higher: whether more is better.
    """

    key: str
    text: str
    unit: str
    higher: bool = False


@dataclass(frozen=True)
class Benchmark:
    """Work that is done on one broker after the other.

    Arguments:
        name: what ``--only`` takes.
        run: does the work once, in a fresh space.
        brokers: on which it makes sense.
        rounds: at most so many, where one takes long.
        slow_rounds: at most so many for brokers that are slow.
    """

    name: str
    run: Callable[[Space, Sizes], Values]
    metrics: Sequence[Metric]
    brokers: Sequence[str]
    rounds: int = 1_000
    slow_rounds: int = 1_000


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that ``percent`` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]
