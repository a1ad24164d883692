"""``python -m tests.benchmarks``."""

import sys

if __name__ == "__main__":  # the processes it starts import this module as well
    from tests.benchmarks.command import main

    sys.exit(main())
