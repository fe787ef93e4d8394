"""What a measurement was made on: without it a figure says nothing."""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MEMORY_FILE_SYSTEMS: Final = frozenset(("tmpfs", "ramfs", "devtmpfs"))
_SYNCS: Final = 100
_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine, and the file system that logs are written to. `fsync_ms` is the median of fdatasync after 4 KiB."""

    cores: int
    processor: str
    kernel: str
    python: str
    directory: str
    file_system: str
    fsync_ms: float
    load_average: float
    """Of the minute before the first measurement."""

    @property
    def on_disk(self) -> bool:
        """Whether what is fsynced there goes anywhere."""
        return self.file_system not in MEMORY_FILE_SYSTEMS


def describe(directory: Path) -> Machine:
    """This machine, with logs in `directory`."""
    return Machine(
        len(os.sched_getaffinity(0)),
        _processor(),
        f"{platform.system()} {platform.release()}",
        f"{platform.python_implementation()} {platform.python_version()}",
        str(directory),
        file_system(directory.resolve(), Path("/proc/self/mounts").read_text()),
        _fsync_ms(directory),
        os.getloadavg()[0],
    )


def busy_seconds() -> float:
    """Processor time that all programs of this machine have used so far, the kernel's own included."""
    user, nice, system, _, _, irq, softirq, *_ = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    return sum(map(int, (user, nice, system, irq, softirq))) / _TICKS


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def file_system(path: Path, mounts: str) -> str:
    """The type of the file system that holds an absolute `path`; `mounts` is as in /proc/self/mounts."""
    best, found = 0, "unknown"
    for line in mounts.splitlines():
        _, point, kind, *_ = line.split()
        if path.is_relative_to(point) and len(point) >= best:
            best, found = len(point), kind
    return found


def _fsync_ms(directory: Path) -> float:
    times: list[float] = []
    with tempfile.TemporaryFile(dir=directory) as file:
        for _ in range(_SYNCS):
            start = time.perf_counter()
            os.write(file.fileno(), bytes(4096))
            os.fdatasync(file.fileno())
            times.append((time.perf_counter() - start) * 1000)
    return statistics.median(times)
