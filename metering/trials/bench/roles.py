"""Roles of the product as processes of their own, which find the servers of the run as any would."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from metering.trials.bench.rate import MeasuringError
from workers.meter import BATCH_LIMIT

_STRIPE: Final = ["metering", "stripe-sandbox", "--stop-with-stdin"]


@dataclass(frozen=True, slots=True)
class Role:
    """A process, and the file that it logs to."""

    process: "subprocess.Popen[bytes]"
    log_path: Path

    def said(self, event: str) -> list[dict[str, Any]]:
        """The lines of this event that it has logged so far."""
        return logged(self.log_path, event)

    def require_running(self) -> None:
        """Raise MeasuringError, with the end of its log, if it has ended."""
        if self.process.poll() is not None:
            end = self.log_path.read_text(errors="replace")[-2_000:]
            raise MeasuringError(
                f"A process of this measurement has ended with {self.process.returncode}:\n{end}"
            )


@contextmanager
def running_roles(
    log_dir: Path, commands: Sequence[Sequence[str]], *, log_level: str = "info"
) -> Iterator[list[Role]]:
    """Run `python -m` with each of `commands`, until the block ends; each of them ends when its standard input does.

    Meters tell of each batch at `debug`.
    """
    roles: list[Role] = []
    try:
        for number, command in enumerate(commands):
            log_path = log_dir / f"role-{number}.log"
            with log_path.open("wb") as log:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", *command],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    env={**os.environ, "METERING_LOG_LEVEL": log_level},
                )
            roles.append(Role(process, log_path))
        yield roles
    finally:
        for role in roles:
            if role.process.stdin is not None:
                role.process.stdin.close()
        for role in roles:
            role.process.wait()


def logged(log_path: Path, event: str) -> list[dict[str, Any]]:
    """The lines of an event in a role's log, as far as it is written; what isn't JSON is passed over."""
    lines = log_path.read_bytes().splitlines(keepends=True)
    told = [json.loads(line) for line in lines if line.startswith(b"{") and line.endswith(b"}\n")]
    return [line for line in told if line["event"] == event]


def meter_command(number: int, *, batch_limit: int = BATCH_LIMIT) -> list[str]:
    """The command of one of several meters."""
    return [
        *("metering", "meter", "--name", f"bench-{number}", "--batch-limit", str(batch_limit)),
        "--stop-with-stdin",
    ]


def jobs_commands() -> list[list[str]]:
    """The jobs, and the Stripe that they talk to."""
    return [_STRIPE, ["metering", "jobs", "--stop-with-stdin"]]


def api_commands() -> list[list[str]]:
    """The API, and the Stripe that it talks to."""
    return [_STRIPE, ["metering", "api", "--stop-with-stdin"]]
