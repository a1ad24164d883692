"""What nobody must load."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


class Trap:
    """Whoever loads its pickle makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)
