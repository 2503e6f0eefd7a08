"""A server program as a process of the test's own, in a directory of its own."""

import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.waiting import wait_until

HOST: Final = "127.0.0.1"
START_LIMIT_S: Final = 60.0
STOP_LIMIT_S: Final = 30.0


def apt_program(name: str, package: str) -> Path:
    """A program that comes with a Debian package. The test fails where it isn't installed: nothing is left out in silence."""
    for directory in ("/usr/lib/postgresql/15/bin:/usr/sbin:/usr/bin", None):
        found = shutil.which(name, path=directory)
        if found is not None:
            return Path(found)
    pytest.fail(f"{name} is not installed: apt-get install --no-install-recommends {package}")


def free_port() -> int:
    """A port of HOST that nobody listens on now."""
    with socket.create_server((HOST, 0)) as taken:
        return int(taken.getsockname()[1])


class Process:
    """A program that runs in the foreground; what it says is in `log`. The owner stops it."""

    def __init__(self, directory: Path, command: Sequence[str | Path], ready: Callable[[], bool]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.log = directory / "log"
        self._command = command
        self._ready = ready
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and return when it is ready."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=self.directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_until(self._is_ready, limit_s=START_LIMIT_S)

    def _is_ready(self) -> bool:
        assert self._process is not None
        ended = self._process.poll()
        assert ended is None, (
            f"{self._command[0]} ended with {ended}: {self.log.read_text(errors='replace')[-2000:]}"
        )
        return self._ready()

    def kill(self) -> None:
        """By SIGKILL."""
        self.send(signal.SIGKILL)
        self.wait()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        if self._process is not None:
            self._process.send_signal(number)

    def wait(self) -> None:
        """Until it has ended."""
        if self._process is not None:
            self._process.wait(STOP_LIMIT_S)

    def stop(self) -> None:
        """By SIGTERM; by SIGKILL where that doesn't help."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
