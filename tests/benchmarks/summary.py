"""Medians, spreads and ratios of a run, and a table of them for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

from tests.benchmarks.environment import sentence

__all__ = ("number", "ratios", "table")

_REFERENCE = "redis"


def number(value: float) -> str:
    """Three digits that mean something."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def medians(measure: dict[str, Any]) -> dict[str, float]:
    """The middle figure of each broker."""
    return {name: median(samples) for name, samples in measure["samples"].items()}


def ratio(measure: dict[str, Any], value: float, reference: float) -> float | None:
    """How many times as good as the reference; above 1 is better, whichever way is good."""
    above, below = (value, reference) if measure["higher"] else (reference, value)
    return above / below if below > 0 and above > 0 else None


def ratios(run: dict[str, Any], measure: dict[str, Any], name: str) -> dict[str, float | None]:
    """A broker against the best of all that are no ceiling, and against Redis."""
    middle = medians(measure)
    peers = [value for other, value in middle.items() if not run["brokers"][other]["ceiling"]]
    found: dict[str, float | None] = {"best": None, _REFERENCE: None}
    if peers:
        best = max(peers) if measure["higher"] else min(peers)
        found["best"] = ratio(measure, middle[name], best)
    if _REFERENCE in middle:
        found[_REFERENCE] = ratio(measure, middle[name], middle[_REFERENCE])
    return found


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _lines(run: dict[str, Any], measure: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for name, samples in measure["samples"].items():
        found = ratios(run, measure, name)
        yield (
            run["brokers"][name]["label"],
            number(median(samples)),
            f"{number(min(samples))} - {number(max(samples))}",
            str(len(samples)),
            _times(found["best"]),
            _times(found[_REFERENCE]),
        )
    for how in ("skipped", "failed"):
        for name, reason in measure[how].items():
            first = reason.strip().splitlines()[-1] if reason.strip() else ""
            yield (run["brokers"][name]["label"], how, first[:90], "", "", "")


def _is_alone(measure: dict[str, Any]) -> bool:
    """Whether there is nothing to compare with, by the nature of the figure."""
    return len(measure["samples"]) == 1 and not measure["skipped"] and not measure["failed"]


def table(run: dict[str, Any]) -> str:
    """All figures, a block for each measure."""
    lines = [
        sentence(run["environment"]),
        "Ratios say how many times as good as the best (the ceiling aside) and as Redis.",
    ]
    if run["quick"]:
        lines.append("A QUICK RUN: it proves that everything runs, its figures mean nothing.")
    for name, found in run["brokers"].items():
        if found["absent"]:
            lines.append(f"{name} is left out: {found['absent']}")
    alone = [measure for measure in run["measures"].values() if _is_alone(measure)]
    for measure in run["measures"].values():
        if measure in alone:
            continue
        unit = f" ({measure['unit']})" if measure["unit"] else ""
        lines.append(f"\n{measure['text']}{unit}")
        head = f"  {'':24} {'median':>10}  {'min - max':23} {'n':>2} {'best':>7} {'Redis':>7}"
        lines.append(head)
        for label, middle, spread, count, best, redis in _lines(run, measure):
            line = f"  {label:24} {middle:>10}  {spread:23} {count:>2} {best:>7} {redis:>7}"
            lines.append(line.rstrip())
    if alone:
        lines.append("\nOf one broker alone")
    for measure in alone:
        ((label, middle, spread, count, *_),) = _lines(run, measure)
        figure = f"{middle} {measure['unit']}".rstrip()
        lines.append(f"  {measure['text']}: {figure} ({spread}, n {count}; {label})")
    return "\n".join(lines) + "\n"
