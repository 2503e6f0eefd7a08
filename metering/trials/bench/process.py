"""What a process has used, as Linux tells; elsewhere nobody is asked, and the answer is None."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has used since it started."""

    cpu_s: float
    """In user and kernel mode, all threads."""
    peak_memory_mb: float
    """The most that was resident at any time (VmHWM), in units of 1,000,000 bytes."""


def usage(pid: int) -> Usage | None:
    """What the process `pid`, which runs, has used."""
    place = Path("/proc") / str(pid)
    try:
        numbers = (place / "stat").read_text().rpartition(")")[2].split()
        status = (place / "status").read_text()
    except OSError:
        return None
    ticks = int(numbers[11]) + int(numbers[12])
    peak_kib = next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")), 0)
    return Usage(ticks / os.sysconf("SC_CLK_TCK"), peak_kib * 1_024 / 1e6)
