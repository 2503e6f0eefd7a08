"""Mutation testing (`make mutate`): changes the code a little, one place at a time, and tells which changes no test notices."""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.servers import lend_servers

JOBS: Final = 2
"""How many mutants are tried at a time; each needs servers for itself."""
MEMORY: Final = Path("/dev/shm")  # noqa: S108 - where it is there, servers needn't wait for a disk


def main() -> int:
    """Have servers run, and try the mutants in a process that has imported nothing of the project."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers are stopped
    command = [sys.executable, "-m", "tests.mutation.run", f"--jobs={JOBS}", *sys.argv[1:]]
    if {"--report", "--help"} & set(sys.argv):
        return subprocess.run(command, check=False).returncode
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None, prefix="mutate-") as folder:
        Path(folder).chmod(0o755)  # the servers have an account of their own where root runs this
        with lend_servers(Path(folder), JOBS):
            return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
