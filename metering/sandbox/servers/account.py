"""The account that the embedded servers run as, and running programs as it."""

import os
import pwd
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Root under another number: Postgres is content, files stay root's, no directory has to be opened to others.
NAMESPACE = ("unshare", "--user", "--map-user=65534", "--map-group=65534")


class ServerError(Exception):
    """An embedded server cannot be started or stopped; the sentence says why and what to do."""


@dataclass(frozen=True)
class Account:
    """How to start a program as the owner of the servers' files: behind `prefix`, and as `uid` when set."""

    prefix: tuple[str, ...] = ()
    uid: int | None = None
    gid: int | None = None

    def run(
        self, command: Sequence[str | Path], cwd: Path, *, script: str = "", handed_over: Sequence[int] = ()
    ) -> None:
        """Run `command` in `cwd` to its end, with `script` as its input and the descriptors `handed_over`.

        It gets a session of its own, so that Ctrl-C does not reach it, nor a server that it leaves behind.
        Raises ServerError with its output when it fails.
        """
        with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as output:
            source.write(script.encode())
            source.seek(0)
            process = subprocess.Popen(
                [*self.prefix, *command],
                cwd=cwd,
                stdin=source,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=handed_over,
                start_new_session=True,
                umask=0o077,
                user=self.uid,
                group=self.gid,
                extra_groups=None if self.uid is None else [],
            )
            try:
                status = process.wait()
            finally:
                process.wait()  # interrupted: first finish what was begun, so that no server starts unseen
            if status != 0:
                output.seek(0)
                said = output.read().decode(errors="replace").strip()
                raise ServerError(f"{Path(command[0]).name} failed with status {status}: {said}")

    def make_dir(self, path: Path) -> None:
        """Make `path`, for nobody else to look into, if there is nothing yet."""
        if not path.exists():
            path.mkdir(mode=0o700)
            self.own(path)

    def own(self, path: Path) -> None:
        """Make `path` itself the account's."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def reaches(self, directories: Sequence[Path]) -> bool:
        """Whether a program started as this account runs at all and may enter `directories`."""
        enter = 'for directory; do cd "$directory" || exit 1; done'
        try:
            self.run(["/bin/sh", "-c", enter, "sh", *directories], Path("/"))
        except (ServerError, OSError):
            return False
        return True


def account_for(data_dir: Path, programs: Sequence[Path]) -> Account:
    """The account that runs `programs` on `data_dir`: the owner of that directory, but never plain root.

    Root's own directory is served from within a user namespace. Where that is forbidden (many containers),
    the directory is given to `nobody`. Raises ServerError when neither can work.
    """
    if os.geteuid() != 0:
        return Account()
    on_the_way = [data_dir.parent, *(program.parent for program in programs)]
    owner = data_dir.stat()
    if owner.st_uid == 0:
        inside = Account(prefix=NAMESPACE)
        if inside.reaches(on_the_way):
            return inside
        nobody = pwd.getpwnam("nobody")
        account = Account(uid=nobody.pw_uid, gid=nobody.pw_gid)
    else:
        account = Account(uid=owner.st_uid, gid=owner.st_gid)
    if not account.reaches(on_the_way):
        raise ServerError(
            f"Postgres refuses to run as root, and uid {account.uid}, which it would run as instead, may not "
            f"enter all of {', '.join(map(str, on_the_way))}: run this as a plain user, or allow user "
            "namespaces (`unshare --user true` must work), or move the virtual environment and METERING_DATA_DIR "
            "to where everyone may enter, or set METERING_DATABASE_URL and METERING_REDIS_URL."
        )
    if owner.st_uid == 0:
        for path in (data_dir, *data_dir.rglob("*")):
            account.own(path)
    return account
