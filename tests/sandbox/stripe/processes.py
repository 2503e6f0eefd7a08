"""The sandbox as a process of its own, which can be killed and brought back."""

import subprocess
import sys
from pathlib import Path
from typing import Final, Self

_PROGRAM: Final = """
import signal, sys, threading
from pathlib import Path
from metering.runtime.logs import configure_logs
from metering.sandbox.stripe.sandbox import serve

configure_logs()
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
path, port, webhook_url = sys.argv[1:]
serve(
    Path(path) if path else None,
    port=int(port),
    stop=stop,
    webhook_url=webhook_url or None,
    ready=lambda sandbox: print(sandbox.url, flush=True),
)
"""
LIMIT_S: Final = 20.0


class SandboxProcess:
    """Runs while it is entered. `url` is where it listens; `output` is all else that it said."""

    def __init__(self, path: Path | None = None, *, port: int = 0, webhook_url: str = "") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _PROGRAM, str(path or ""), str(port), webhook_url],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        assert self.url, "the sandbox did not start"

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._process.kill()
        self._process.wait(LIMIT_S)

    def stop(self) -> str:
        """SIGTERM; it must end with status 0. Returns what it wrote to standard output after its address."""
        self._process.terminate()
        output, _ = self._process.communicate(timeout=LIMIT_S)
        assert self._process.returncode == 0
        return output

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.kill()
        if self._process.stdout is not None:
            self._process.stdout.close()
