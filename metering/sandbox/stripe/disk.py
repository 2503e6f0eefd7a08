"""Where the objects outlive the process: SQLite, written through, so that a killed sandbox loses nothing it has answered."""

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from metering.sandbox.stripe.values import Json

LAYOUT: Final = 1
"""The version of the tables. A file of another one is refused."""
BUSY_TIMEOUT_S: Final = 5.0
"""How long a file that another process is just leaving is waited for."""

_TABLES: Final = """
    CREATE TABLE IF NOT EXISTS objects (id TEXT PRIMARY KEY, position INTEGER NOT NULL, body BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS answers (
        key TEXT PRIMARY KEY, fingerprint BLOB NOT NULL, created INTEGER NOT NULL,
        status INTEGER NOT NULL, body BLOB NOT NULL, request_id TEXT NOT NULL
    ) WITHOUT ROWID;
"""


class KeptAnswer(NamedTuple):
    """What a request with an `Idempotency-Key` was answered. `fingerprint` stands for its endpoint and parameters."""

    key: str
    fingerprint: bytes
    created: int
    status: int
    body: bytes
    request_id: str


class StoredObject(NamedTuple):
    """An object and its place in the order in which objects were made."""

    id: str
    position: int
    value: Json


@dataclass(slots=True)
class Change:
    """What one request changes, all or nothing."""

    objects: list[StoredObject]
    answer: KeptAnswer | None
    forgotten_keys: list[str]


class Disk:
    """One file. Only one process at a time may have it open; the kernel frees it when that is killed."""

    def __init__(self, path: Path) -> None:
        """Open `path`, or make it. Raises sqlite3.Error where another process has it, or it is none of ours."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT_S
        )
        try:
            self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def _prepare(self) -> None:
        connection = self._connection
        # What is written survives a kill of the process; for a crash of the machine a sandbox need not wait at every request.
        for pragma in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = NORMAL"):
            connection.execute(f"PRAGMA {pragma}")
        (layout,) = connection.execute("PRAGMA user_version").fetchone()
        if layout not in {0, LAYOUT}:
            raise sqlite3.DatabaseError(
                f"the sandbox's file has layout {layout}, this version knows {LAYOUT}"
            )
        connection.executescript(_TABLES)
        connection.execute(f"PRAGMA user_version = {LAYOUT}")

    def load_objects(self) -> Iterable[StoredObject]:
        """All objects, in the order in which they were made."""
        with closing(
            self._connection.execute("SELECT id, position, body FROM objects ORDER BY position")
        ) as rows:
            for object_id, position, body in rows:
                yield StoredObject(object_id, position, msgspec.json.decode(body))

    def load_answers(self) -> Iterable[KeptAnswer]:
        """All answers that keys keep, oldest first."""
        query = "SELECT key, fingerprint, created, status, body, request_id FROM answers ORDER BY created"
        with closing(self._connection.execute(query)) as rows:
            for row in rows:
                yield KeptAnswer(*row)

    def write(self, change: Change) -> None:
        """Write one change. Raises sqlite3.Error; then nothing of it is written."""
        self._connection.execute("BEGIN")
        try:
            self._connection.executemany(
                "DELETE FROM answers WHERE key = ?", [(key,) for key in change.forgotten_keys]
            )
            self._connection.executemany(
                "INSERT OR REPLACE INTO objects VALUES (?, ?, ?)",
                [(each.id, each.position, msgspec.json.encode(each.value)) for each in change.objects],
            )
            if change.answer is not None:
                self._connection.execute(
                    "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?)", change.answer
                )
            self._connection.execute("COMMIT")
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise

    def clear(self) -> None:
        """Forget everything."""
        self._connection.executescript("BEGIN; DELETE FROM objects; DELETE FROM answers; COMMIT")

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
