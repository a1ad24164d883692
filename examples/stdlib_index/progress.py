"""One line that tells how far a run is."""

import sys
import time

LINE_INTERVAL_S = 2.0


class Progress:
    """Shows "counted 812 of 1790 files" on stderr.

    A terminal sees one line that changes; a file or pipe gets a new line every two seconds.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._stream = sys.stderr
        self._live = self._stream.isatty()
        self._next_line_at = time.monotonic()

    def show(self, counted: int) -> None:
        """Tell that ``counted`` files are done."""
        text = f"counted {counted} of {self._total} files"
        if self._live:
            print(f"\r{text}", end="", file=self._stream, flush=True)
        elif time.monotonic() >= self._next_line_at:
            print(text, file=self._stream, flush=True)
            self._next_line_at = time.monotonic() + LINE_INTERVAL_S

    def close(self, counted: int) -> None:
        """Leave the last state on a line of its own."""
        self._next_line_at = 0.0
        self.show(counted)
        if self._live:
            print(file=self._stream)
