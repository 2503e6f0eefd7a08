"""Running `metering`: in this process where that will do, as a process of its own where it won't."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner, Result

from metering.cli.main import app
from tests.conftest import Database
from tests.stripe_away import NO_STRIPE

# The tree of all commands, made once: the runner would make it for each command that a test runs, which takes longer than most.
pytest.MonkeyPatch().setattr("typer.testing._get_command", functools.cache(typer.main.get_command))

PROGRAM = [sys.executable, "-P", "-m", "metering"]


@dataclass(frozen=True)
class Cli:
    """The command, with settings of its own."""

    settings: Mapping[str, str]

    def run(self, *arguments: str, status: int = 0) -> Result:
        """Run in this process, and require the exit status. An error that nobody foresaw is raised."""
        result = CliRunner().invoke(app, arguments, env=self.settings, catch_exceptions=False)
        assert result.exit_code == status, result.output
        return result

    def json(self, *arguments: str, status: int = 0) -> Any:
        """What it prints with --json: one line, and nothing else on standard output."""
        result = self.run(*arguments, "--json", status=status)
        assert result.stdout.count("\n") == 1
        return json.loads(result.stdout)

    def fail(self, *arguments: str) -> str:
        """The sentence with which it fails: one line on standard error, nothing on standard output."""
        result = self.run(*arguments, status=1)
        assert result.stdout == ""
        assert result.stderr.count("\n") == 1, result.stderr
        return result.stderr.strip()

    def process(self, *arguments: str, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
        """Run as a process, to its end."""
        return subprocess.run(
            [*PROGRAM, *arguments],
            input=stdin,
            env=self.environment(),
            capture_output=True,
            timeout=110,
            check=False,
        )

    def start(self, *arguments: str, cwd: Path | None = None) -> "subprocess.Popen[bytes]":
        """Run as a process, and go on."""
        return subprocess.Popen(
            [*PROGRAM, *arguments],
            env=self.environment(),
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    @contextmanager
    def logging_to(self, log_path: Path, *arguments: str) -> Iterator[None]:
        """Run a role as a process that logs to a file; it is told to stop when the block ends."""
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [*PROGRAM, *arguments],
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            yield
        finally:
            process.terminate()
            process.wait(60)

    def environment(self) -> dict[str, str]:
        return {**os.environ, **self.settings}


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine's environment says, only a test's own settings count."""
    for name in list(os.environ):
        if name.startswith(("METERING_", "STRIPE_")):
            monkeypatch.delenv(name)


@pytest.fixture
def cli(database: Database, redis_url: str) -> Cli:
    """The command on the test's own database and Valkey."""
    return Cli({"METERING_DATABASE_URL": database.url, "METERING_REDIS_URL": redis_url, **NO_STRIPE})


@pytest.fixture
def offline(data_dir: Path) -> Cli:
    """The command where nothing runs: for what is refused before anything is asked."""
    return Cli({"METERING_DATA_DIR": str(data_dir)})


@pytest.fixture
def events_file(tmp_path: Path) -> Path:
    """Three events and two blank lines; the last line has no newline."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"call_id":1}\n\n{"call_id": 2}\r\n  \r\n\xff not JSON')
    return path
