"""Draws a run: a row of bars for each measure, with the spread as a line."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.benchmarks.environment import sentence
from tests.benchmarks.summary import medians, number

__all__ = ("draw",)

_COLUMNS = 3
_WIDE = 50


def draw(run: dict[str, Any], path: Path) -> None:
    """Write a picture, in the format of the path's suffix, if matplotlib is there."""
    if find_spec("matplotlib") is None:
        sys.stderr.write("No picture: matplotlib is not installed.\n")
        return
    from matplotlib.figure import Figure

    measures = [measure for measure in run["measures"].values() if measure["samples"]]
    rows = -(-len(measures) // _COLUMNS)
    figure = Figure(figsize=(6 * _COLUMNS, 0.6 + 2.6 * rows), layout="constrained")
    axes = list(figure.subplots(rows, _COLUMNS, squeeze=False).flat)
    for axis in axes:
        axis.set_visible(False)
    for axis, measure in zip(axes, measures, strict=False):
        axis.set_visible(True)
        middle = medians(measure)
        names = list(middle)
        values = [middle[name] for name in names]
        spread = [
            [max(0.0, middle[name] - min(measure["samples"][name])) for name in names],
            [max(0.0, max(measure["samples"][name]) - middle[name]) for name in names],
        ]
        colours = ["tab:blue" if name.startswith("sqlite") else "tab:gray" for name in names]
        bars = axis.barh([run["brokers"][name]["label"] for name in names], values, color=colours)
        axis.errorbar(values, range(len(names)), xerr=spread, fmt="none", ecolor="black")
        axis.bar_label(bars, [number(value) for value in values], padding=4, fontsize=7)
        if min(values) > 0 and max(values) > _WIDE * min(values):
            axis.set_xscale("log")  # the short bars would not be seen
        axis.invert_yaxis()
        axis.tick_params(labelsize=7)
        good = "more is better" if measure["higher"] else "less is better"
        axis.set_title(f"{measure['text']} ({measure['unit'] or 'count'}; {good})", fontsize=7)
        axis.margins(x=0.15)
    title = sentence(run["environment"])
    figure.suptitle(f"QUICK RUN, no figures: {title}" if run["quick"] else title, fontsize=8)
    figure.savefig(path)
