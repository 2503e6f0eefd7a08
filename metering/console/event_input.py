"""Where `metering push` reads events from: a file or a pipe, plain or gzip, line by line."""

import gzip
import io
import os
import select
import shlex
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from metering.console.errors import CommandError, quoted
from metering.console.event_shapes import is_object, other_shape, without_mark

POLL_EVERY_S: Final = 0.1
"""How often whoever waits for more is asked whether to go on."""
MAX_LINE_BYTES: Final = 1024 * 1024
"""Far above what is billed or kept, and little enough for a meter's memory, which holds a batch of them."""
READ_BYTES: Final = 64 * 1024
GZIP_MAGIC: Final = b"\x1f\x8b"


class UnreadableInputError(Exception):
    """The input can't be read on. The text says where, and why."""


class OtherShapeError(UnreadableInputError):
    """The input as a whole is no JSON lines. Its first line tells, so nothing of it was read on. The text says what to do."""


class Input(io.RawIOBase):
    """A file or a pipe, read as its bytes come.

    Whoever reads it through other readers can't see when they wait for more. So it calls `before_read` each time before it
    reads, and again every `POLL_EVERY_S` while nothing is there; what that raises ends the reading.
    """

    def __init__(
        self, name: str, descriptor: int, *, size_bytes: int | None = None, path: str | None = None
    ) -> None:
        self.label = name
        self.path = path
        """None where it isn't a file with a name."""
        self.size_bytes = size_bytes
        """None where it isn't known."""
        self.read_bytes = 0
        self.before_read: Callable[[], None] = lambda: None
        self._descriptor = descriptor
        self._put_back = b""

    def readable(self) -> bool:
        """It can be read, and nothing else."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what is there, at least one byte but at the end."""
        if self._put_back:
            number = min(len(buffer), len(self._put_back))
            buffer[:number], self._put_back = self._put_back[:number], self._put_back[number:]
            return number
        self.before_read()
        while not select.select([self._descriptor], [], [], POLL_EVERY_S)[0]:
            self.before_read()
        number = os.readv(self._descriptor, [buffer])
        self.read_bytes += number
        return number

    def begins_with(self, magic: bytes) -> bool:
        """Whether the first bytes are these; they stay to be read. It waits for as many bytes, or for the end."""
        head = b""
        while len(head) < len(magic) and (more := self.read(len(magic) - len(head))):
            head += more
        self._put_back = head
        return head == magic


@contextmanager
def open_input(name: str) -> Iterator[Input]:
    """Open a file, or standard input for `-`."""
    if name == "-":
        if sys.stdin is None:
            raise CommandError("FILE: standard input is closed; name a file, or give it something to read.")
        yield Input("standard input", sys.stdin.fileno())
        return
    with ExitStack() as stack:
        try:
            file = stack.enter_context(Path(name).open("rb", buffering=0))
        except IsADirectoryError as error:
            files = f"{shlex.quote(name.rstrip('/'))}/*.jsonl"
            raise CommandError(
                f"FILE: {name} is a directory: name one file, or `cat {files} | metering push -`."
            ) from error
        except OSError as error:
            raise CommandError(f"FILE: {name} can't be read ({error.strerror}).") from error
        yield Input(name, file.fileno(), size_bytes=os.fstat(file.fileno()).st_size or None, path=name)


class EventLines:
    """The lines of an input that aren't blank, one event each, without newline and byte order mark, and otherwise as they are.

    gzip is known by its first bytes. Raises UnreadableInputError; OtherShapeError where the first line tells that this is
    something else.
    """

    def __init__(self, source: Input) -> None:
        self.number = 0
        """Of the line that was read last."""
        self.events = 0
        self.no_objects = 0
        """How many of the lines are no JSON objects."""
        self.first_no_object = 0
        """The number of the first of them."""
        self._source = source

    def __iter__(self) -> Iterator[bytes]:
        """Each of them, as it comes."""
        source = self._source
        try:
            packed = source.begins_with(GZIP_MAGIC)
            # A gzip reader straight on the source: one that fills a buffer first would hold back what has come.
            lines: BinaryIO = (
                cast("BinaryIO", gzip.GzipFile(fileobj=source, mode="rb"))
                if packed
                else cast("BinaryIO", io.BufferedReader(source, READ_BYTES))
            )
            while line := lines.readline(MAX_LINE_BYTES + 1):
                self.number += 1
                line = without_mark(line)
                if not line.strip():
                    continue
                if self.events == 0:
                    self._refuse_other_shape(line, packed=packed)
                if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
                    raise UnreadableInputError(
                        f"FILE: line {self.number} of {source.label} is longer than {MAX_LINE_BYTES // 2**20} MiB,"
                        " which can't be an event: take it out"
                    )
                self._count(line)
                yield line.removesuffix(b"\n")
        except EOFError as error:
            raise UnreadableInputError(
                f"FILE: {source.label} ends early, in the middle of what gzip has packed, after line {self.number}:"
                " get the whole file"
            ) from error
        except (OSError, zlib.error) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else quoted(error)
            raise UnreadableInputError(
                f"FILE: {source.label} can't be read after line {self.number} ({why})"
            ) from error

    def _refuse_other_shape(self, line: bytes, *, packed: bool) -> None:
        path = self._source.path
        if path is not None:
            path = shlex.quote(path)
        shape = other_shape(line, self._source.label, path=path, packed=packed)
        if shape is not None:
            raise OtherShapeError(f"FILE: {shape}")

    def _count(self, line: bytes) -> None:
        self.events += 1
        if not is_object(line):
            self.no_objects += 1
            self.first_no_object = self.first_no_object or self.number
