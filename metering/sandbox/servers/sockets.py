"""The directory that the embedded servers' Unix sockets are in."""

import hashlib
import os
import re
import stat
import tempfile
from pathlib import Path

from metering.sandbox.servers.account import ServerError

# sockaddr_un holds 104 bytes on macOS, 108 on Linux; the longest name in here is ".s.PGSQL.5432".
LONGEST_DIR_BYTES = 85
# A path of these needs no quoting in a URL, in Postgres's configuration or on a command line.
PLAIN_PATH = re.compile(r"[A-Za-z0-9/._-]+")


def sockets_dir_of(data_dir: Path) -> Path:
    """Where the servers of `data_dir` (resolved, existing) listen: all who ask get the same answer.

    Inside `data_dir`, or among the temporary files if that path is too long or has odd characters. It need
    not exist; one that another user made or may enter raises ServerError, for he would be our database.
    """
    owner = data_dir.stat().st_uid
    digest = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:12]
    for path in (data_dir / "run", Path(tempfile.gettempdir()) / f"metering-{owner}-{digest}"):
        if len(str(path)) <= LONGEST_DIR_BYTES and PLAIN_PATH.fullmatch(str(path)):
            break
    else:
        raise ServerError(f"{path} is too long or too odd a path for sockets: set TMPDIR to a short one.")
    if os.path.lexists(path):
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != owner or found.st_mode & 0o077:
            raise ServerError(
                f"{path} must be a directory that only uid {owner} may enter, and is not: remove it."
            )
    return path
