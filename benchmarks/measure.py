"""Seconds, memory and the versions that a figure belongs to."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["Cost", "commit", "interleaved", "measured", "peak_mib", "ratio", "versions"]

ROOT = Path(__file__).parent.parent
_STATUS = Path("/proc/self/status")


@dataclass
class Cost:
    """Filled by :func:`measured` when its block ends."""

    seconds: float = float("nan")
    mib: float = float("nan")


def _reset_peak() -> None:
    """Set the kernel's high-water mark of resident memory back to what is resident now (Linux only)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_mib() -> float:
    """Peak resident memory of this process in MiB, since its start or the last reset."""
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    unit = 1024**2 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


@contextmanager
def measured() -> Iterator[Cost]:
    """Measure wall seconds and peak resident memory of a block (of the whole process: data and imports included)."""
    cost = Cost()
    _reset_peak()
    start = time.perf_counter()
    yield cost
    cost.seconds = time.perf_counter() - start
    cost.mib = peak_mib()


def interleaved(
    functions: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, list[float]]:
    """Time functions in turn, round after round, after one untimed round.

    Neighbours on the machine come and go: what runs in the same round meets the same neighbours, so ratios hold where
    absolute figures drift. CPU time of the process is the default clock, for the same reason.

    Returns
    -------
    dict
        Name -> seconds of each round.
    """
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = clock()
            function()
            seconds[name].append(clock() - start)
    return seconds


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Median over the rounds of how many times longer ``slow`` took than ``fast``."""
    return statistics.median(s / f for s, f in zip(slow, fast, strict=True))


def commit() -> str:
    """Short hash of the commit of this checkout, with ``+`` if tracked files outside the results differ from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
        return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def versions(packages: Sequence[str]) -> str:
    """Return ``"name 1.2; name 3.4"`` for Python and the packages that are installed."""
    found = ["python " + ".".join(str(part) for part in sys.version_info[:3])]
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return "; ".join(found)
