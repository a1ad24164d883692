"""Where and with what a run was made."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import apsw

from tests.benchmarks.brokers import BROKERS

__all__ = ("describe", "sentence")

_PACKAGES = ("kombu-sqlite", "kombu", "celery", "apsw", "redis", "SQLAlchemy", "amqp", "billiard")


def _processor() -> str:
    """The processor's model; ``platform`` knows it on few systems."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def describe(brokers: Iterable[str]) -> dict[str, Any]:
    """The machine, the programs and the moment."""
    load = os.getloadavg() if hasattr(os, "getloadavg") else (None,)
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "load_before": load[0],
        "python": f"{platform.python_implementation()} {sys.version.split()[0]}",
        "sqlite": apsw.sqlite_lib_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "brokers": {name: BROKERS[name].version() for name in brokers},
    }


def sentence(found: dict[str, Any]) -> str:
    """The same in one line."""
    packages = found["packages"]
    servers = [
        text for name, text in found["brokers"].items() if name in ("redis", "rabbitmq-unconfirmed")
    ]
    return (
        f"{found['date'].split()[0]}, {found['cores']} cores ({found['processor']}), "
        f"{found['python']}, Kombu {packages['kombu']}, Celery {packages['celery']}, "
        + ", ".join([f"SQLite {found['sqlite']}", *servers])
    )
