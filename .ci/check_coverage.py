"""Tells what the tests have reached of each package; fails below a share of its lines.

Arguments: the file of ``coverage json``, and the share in per cent.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path


def main(report: str, least: str) -> int:
    """Return the exit code."""
    reached: dict[str, Counter[str]] = {}
    for name, found in json.loads(Path(report).read_text(encoding="utf-8"))["files"].items():
        reached.setdefault(Path(name).parts[0], Counter()).update(found["summary"])
    code = 0 if reached.keys() == {"kombu_sqlite", "celery_integration"} else 1
    for package, counts in sorted(reached.items()):
        lines = 100 * counts["covered_lines"] / counts["num_statements"]
        branches = 100 * counts["covered_branches"] / counts["num_branches"]
        sys.stdout.write(f"{package}: {lines:.1f} % of lines, {branches:.1f} % of branches\n")
        if lines < float(least):
            sys.stdout.write(f"{package}: at least {least} % of its lines are to be reached\n")
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
