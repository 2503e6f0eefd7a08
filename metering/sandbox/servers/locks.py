"""Locks on files, which the kernel gives back when their holder dies, even by SIGKILL."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SHARED = fcntl.LOCK_SH
EXCLUSIVE = fcntl.LOCK_EX


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A descriptor of the lock file at `path`, made if missing; closing it gives back what it holds.

    No program that is started inherits it unless it is handed over by name (Python opens close-on-exec).
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if os.geteuid() == 0:  # root may work for the directory's owner, who has to be able to lock it too
            owner = path.parent.stat()
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, operation: int) -> Iterator[int]:
    """Hold `path` SHARED or EXCLUSIVE for the time of the block; waits for it."""
    with opened(path) as descriptor:
        fcntl.flock(descriptor, operation)
        yield descriptor


def try_exclusive(descriptor: int) -> bool:
    """Take the lock for ourselves alone, without waiting. If that fails, a shared one held before is lost."""
    try:
        fcntl.flock(descriptor, EXCLUSIVE | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
