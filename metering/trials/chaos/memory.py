"""The most memory that each process of a run has had: what the kernel keeps as VmHWM."""

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

POLL_EVERY_S: Final = 1.0
_PEAK: Final = re.compile(r"^VmHWM:\s+([0-9]+) kB", re.MULTILINE)


def peak_kib(pid: int) -> int | None:
    """A process's peak so far, in KiB; None where it is gone, or the system doesn't tell (only Linux does)."""
    try:
        found = _PEAK.search(Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace"))
    except OSError:
        return None
    return None if found is None else int(found.group(1))


class Memory(threading.Thread):
    """Looks at processes again and again until stopped, so that one which is killed has been looked at before."""

    def __init__(self, processes: Callable[[], Mapping[str, Sequence[int]]]) -> None:
        super().__init__(name="memory", daemon=True)
        self.peaks_kib: dict[str, int] = {}
        """By name; of a name with several processes, the largest one's."""
        self._processes = processes
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Look a last time."""
        self._stopped.set()
        if self.ident is not None:
            self.join()
        self._look()

    def run(self) -> None:
        while not self._stopped.wait(POLL_EVERY_S):
            self._look()

    def _look(self) -> None:
        for name, pids in self._processes().items():
            peaks = [peak for pid in pids if (peak := peak_kib(pid)) is not None]
            self.peaks_kib[name] = max([self.peaks_kib.get(name, 0), *peaks])
