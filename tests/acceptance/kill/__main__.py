"""The command: prints what a run came to, and ends with 1 if a promise was broken."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile

from .play import CAST, run


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.acceptance.kill", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**9))
    parser.add_argument("--kills", type=int, default=200, help="SIGKILLs; others come on top")
    parser.add_argument("--messages", type=int, default=100_000, help="at least so many")
    parser.add_argument("--every", type=float, default=1.6, help="seconds between two signals")
    arguments = parser.parse_args()
    sys.stdout.write(f"seed {arguments.seed}\n")
    sys.stdout.flush()
    folder = tempfile.mkdtemp(prefix="kill-")
    summary = run(
        folder, arguments.seed, arguments.kills, arguments.messages, CAST, arguments.every
    )
    sys.stdout.write(f"{summary}\n")
    if summary.violations:
        sys.stdout.write(f"file, ledgers and logs are in {folder}\n")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
