"""Running roles as processes of their own, and keeping them running."""

import itertools
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from metering.runtime.backoff import backoff_s
from metering.runtime.settings import SettingsError, read_settings

STOP_LIMIT_S: Final = 30.0
"""How long a role may take to finish what it has in hand."""
HEALTHY_AFTER_S: Final = 10.0
"""A role that lived so long starts with a short wait again when it dies."""
POLL_EVERY_S: Final = 0.1
MAX_PORT: Final = 65_535


@dataclass(frozen=True, slots=True)
class Role:
    """A role of the product: what to call it, and the arguments of `metering` that run it."""

    name: str
    arguments: tuple[str, ...]
    serves_metrics: bool = True


JOBS: Final = Role("jobs", ("jobs",))
API: Final = Role("api", ("api",))
STRIPE_SANDBOX: Final = Role("stripe-sandbox", ("stripe-sandbox",), serves_metrics=False)


def meter_roles(number: int) -> list[Role]:
    """So many meters. Their names stay when they are started again, so that each finds what it had in hand."""
    host, pid = socket.gethostname(), os.getpid()
    names = [f"{host}-{pid}-{index}" for index in range(1, number + 1)]
    return [Role(f"meter {name}", ("meter", "--name", name)) for name in names]


def metrics_ports(roles: Sequence[Role]) -> list[int]:
    """The ports on which roles of this machine serve their metrics, in their order: METERING_METRICS_PORT, then those after it,
    because no two can share one. 0 for a role that has none, and for all where that is 0: each takes a free one.

    Raises SettingsError where there aren't so many.
    """
    first = read_settings().metrics_port
    number = sum(role.serves_metrics for role in roles)
    if first and first + number - 1 > MAX_PORT:
        raise SettingsError(
            f"METERING_METRICS_PORT must be at most {MAX_PORT + 1 - number} here: {number} roles take as many ports from it on,"
            f" and {MAX_PORT} is the last there is."
        )
    ports = itertools.count(first)
    return [next(ports) if first and role.serves_metrics else 0 for role in roles]


@dataclass(slots=True)
class _Child:
    """A role and the process that runs it now, or the time when it is to be started again."""

    role: Role
    metrics_port: int
    process: "subprocess.Popen[bytes] | None" = None
    started_s: float = 0.0
    due_s: float = 0.0
    waits: Iterator[float] = field(default_factory=backoff_s)


class Supervisor:
    """Runs `roles` for the time of a with block. One that dies is started again, after a wait, and `say` is told so.

    Each is in a session of its own, so that Ctrl-C reaches the supervisor alone, and stops by itself when the supervisor
    is gone, even by SIGKILL, because its standard input ends then. Output goes to `log_path`, or to where this process's goes.
    Each has a metrics port of its own (`metrics_ports`), and of the environment what `settings` doesn't replace.
    """

    def __init__(
        self,
        roles: Sequence[Role],
        *,
        say: Callable[[str], None],
        log_path: Path | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._children = [_Child(role, port) for role, port in zip(roles, metrics_ports(roles), strict=True)]
        self._say = say
        self._settings = dict(settings or {})
        self._log_path = log_path
        self._log: IO[bytes] | None = None
        self._leaving = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self._resources = ExitStack()

    def __enter__(self) -> Self:
        if self._log_path is not None:
            self._log = self._resources.enter_context(self._log_path.open("ab"))
        try:
            for child in self._children:
                self._start(child)
        except BaseException:
            self._stop()
            raise
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell the roles to stop, wait until they have finished what they had in hand, and kill those that don't end."""
        self._leaving.set()
        self._watcher.join()
        self._stop()

    def pids(self) -> dict[str, int]:
        """The process ids of the roles that run now, by name."""
        processes = [(child.role.name, child.process) for child in self._children]
        return {name: process.pid for name, process in processes if process is not None}

    def _start(self, child: _Child) -> None:
        # -P: the directory that we happen to be in must not decide what `import db` means.
        child.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "metering", *child.role.arguments, "--stop-with-stdin"],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            env={**os.environ, **self._settings, "METERING_METRICS_PORT": str(child.metrics_port)},
            start_new_session=True,
        )
        child.started_s = time.monotonic()

    def _watch(self) -> None:
        while not self._leaving.wait(POLL_EVERY_S):
            for child in self._children:
                self._look_after(child)

    def _look_after(self, child: _Child) -> None:
        now_s = time.monotonic()
        if child.process is None:
            if now_s >= child.due_s:
                try:
                    self._start(child)
                except OSError as error:
                    self._plan_restart(child, f"could not be started ({error.strerror})")
        elif (status := child.process.poll()) is not None:
            _close_stdin(child.process)
            child.process = None
            if now_s - child.started_s >= HEALTHY_AFTER_S:
                child.waits = backoff_s()
            how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
            self._plan_restart(child, how)

    def _plan_restart(self, child: _Child, how: str) -> None:
        wait_s = next(child.waits)
        child.due_s = time.monotonic() + wait_s
        self._say(f"{child.role.name} {how}; starting it again in {wait_s:.1f} s.")

    def _stop(self) -> None:
        running = [(child.role.name, child.process) for child in self._children if child.process is not None]
        for _, process in running:
            process.terminate()
        deadline_s = time.monotonic() + STOP_LIMIT_S
        for name, process in running:
            try:
                process.wait(max(deadline_s - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                self._say(
                    f"{name} did not stop within {STOP_LIMIT_S:.0f} s and is killed; nothing is lost by that."
                )
                process.kill()
                process.wait()
            _close_stdin(process)
        self._resources.close()


def _close_stdin(process: "subprocess.Popen[bytes]") -> None:
    if process.stdin is not None:
        process.stdin.close()
