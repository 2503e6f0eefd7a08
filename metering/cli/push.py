# ruff: noqa: PLC0415 - imported when the command runs, so that --help is quick
"""`metering push`."""

import gzip
import io
import os
import select
import signal
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Final, cast

import typer

from metering.cli.errors import CommandError, quoted
from metering.cli.output import JsonOption, counted, progress_bar, say, show_json, warn
from metering.cli.stopping import stop_signals

if TYPE_CHECKING:
    import redis

BATCH_EVENTS: Final = 500
BATCH_BYTES: Final = 4 * 1024 * 1024
"""So that a batch of long lines doesn't fill the memory."""
BATCH_AGE_S: Final = 0.1
"""How long a line may wait for others to be pushed with."""
MAX_LINE_BYTES: Final = 1024 * 1024
"""Far above what is billed or kept, and little enough for a meter's memory, which holds a batch of them."""
READ_BYTES: Final = 64 * 1024
GZIP_MAGIC: Final = b"\x1f\x8b"
SAFE_AGAIN: Final = "Pushing the same input again is safe: a call is billed once."
SEE_TO_REDIS: Final = "See to the server, or to METERING_REDIS_URL."


class UnreadableInputError(Exception):
    """The input can't be read on. The text says where, and why."""


class _ToldToStopError(Exception):
    """A signal came: no more is to be read."""


class Input(io.RawIOBase):
    """A file or a pipe, read as its bytes come.

    Whoever reads it through other readers can't see when they wait for more. So it calls `before_read` each time before it
    reads, and again every `BATCH_AGE_S` while nothing is there; what that raises ends the reading.
    """

    def __init__(self, name: str, descriptor: int, *, size_bytes: int | None = None) -> None:
        self.label = name
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
        while not select.select([self._descriptor], [], [], BATCH_AGE_S)[0]:
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


def push(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE|-",
            help="A file of JSON lines, gzip or not; - is standard input.",
            show_default=False,
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Push completed calls into the stream, one JSON object per line.

    Lines go in as they are, and soon, even where more is still to come: what can't be billed is kept by the meters
    (`metering rejected list`). Pushing a file twice is safe: a call is billed once.
    """
    from metering.cli.connections import open_redis

    with (
        open_redis() as client,
        _open_input(file) as source,
        progress_bar() as bar,
        _noting_signals() as came,
    ):
        task = bar.add_task("pushing", total=source.size_bytes, events=0)
        pusher = Pusher(client, lambda so_far: bar.update(task, completed=source.read_bytes, events=so_far))
        try:
            push_lines(source, pusher, stop=lambda: bool(came))
        except _ToldToStopError:
            warn(
                f"Told to stop: {counted(pusher.pushed, 'event')} pushed, the rest of the input not. {SAFE_AGAIN}"
            )
            status = 128 + came[0]
        else:
            status = 0
    if as_json:
        show_json({"pushed": pusher.pushed})
    elif status == 0:
        say(f"{counted(pusher.pushed, 'event')} pushed.")
    raise typer.Exit(status)


@contextmanager
def _open_input(name: str) -> Iterator[Input]:
    """Open a file, or standard input for `-`."""
    if name == "-":
        if sys.stdin is None:
            raise CommandError("FILE: standard input is closed; name a file, or give it something to read.")
        yield Input("standard input", sys.stdin.fileno())
        return
    with ExitStack() as stack:
        try:
            file = stack.enter_context(Path(name).open("rb", buffering=0))
        except OSError as error:
            raise CommandError(f"FILE: {name} can't be read ({error.strerror}).") from error
        yield Input(name, file.fileno(), size_bytes=os.fstat(file.fileno()).st_size or None)


@contextmanager
def _noting_signals() -> Iterator[list[int]]:
    """A list that gets the number of a signal to stop, while the block runs; the next one acts as it would without us."""
    came: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        put_back()

    def put_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.getsignal(number) for number in stop_signals()}
    for number in before:
        signal.signal(number, note)
    try:
        yield came
    finally:
        put_back()


class Pusher:
    """Pushes lines in batches."""

    def __init__(self, client: "redis.Redis", report: Callable[[int], None]) -> None:
        self.pushed = 0
        """How many were surely pushed; `report` gets it after each batch."""
        self._client = client
        self._report = report
        self._batch: list[bytes] = []
        self._batch_bytes = 0
        self._began_s = 0.0

    def add(self, line: bytes) -> None:
        """Take a line into the batch; push that when it is full. Raises redis.RedisError."""
        if not self._batch:
            self._began_s = time.monotonic()
        self._batch.append(line)
        self._batch_bytes += len(line)
        if len(self._batch) == BATCH_EVENTS or self._batch_bytes >= BATCH_BYTES:
            self.push()

    def push_old(self) -> None:
        """Push the batch if its first line has waited long enough. Raises redis.RedisError."""
        if self._batch and time.monotonic() - self._began_s >= BATCH_AGE_S:
            self.push()

    def push(self) -> None:
        """Push the batch, once: nothing of it is tried again. Raises redis.RedisError."""
        import redis

        batch, self._batch, self._batch_bytes = self._batch, [], 0
        if not batch:
            return
        answers = append_events(self._client, batch)
        refusals = [answer for answer in answers if isinstance(answer, redis.RedisError)]
        self.pushed += len(answers) - len(refusals)
        self._report(self.pushed)
        if refusals:
            raise refusals[0]


def push_lines(source: Input, pusher: Pusher, *, stop: Callable[[], bool]) -> None:
    """Push each line of `source`, up to the end or until `stop()`: then what was read is pushed, and _ToldToStopError raised.

    Raises CommandError, saying how many were surely pushed, when the input can't be read on or Redis fails.
    """
    import redis

    def before_read() -> None:
        if stop():
            raise _ToldToStopError
        pusher.push_old()

    source.before_read = before_read
    try:
        try:
            for line in _lines(source):
                pusher.add(line)
        except (UnreadableInputError, _ToldToStopError):
            pusher.push()
            raise
        pusher.push()
    except redis.RedisError as error:
        raise CommandError(
            f"Redis can't be reached, or refuses: {quoted(error)}; {counted(pusher.pushed, 'event')} surely pushed."
            f" {SEE_TO_REDIS} {SAFE_AGAIN}"
        ) from error
    except UnreadableInputError as error:
        raise CommandError(
            f"{error}; {counted(pusher.pushed, 'event')} before that pushed. {SAFE_AGAIN}"
        ) from error


def append_events(client: "redis.Redis", raws: Sequence[bytes]) -> list[Any]:
    """XADD each event in one round trip, once: for each the new entry's id (bytes), or the redis.RedisError that refused it.

    Raises redis.RedisError when the connection fails; then each may or may not be in the stream.
    """
    from workers.stream import EVENT_FIELD, STREAM

    with client.pipeline(transaction=False) as pipeline:
        for raw in raws:
            pipeline.xadd(STREAM, {EVENT_FIELD: raw})
        return pipeline.execute(raise_on_error=False)


def _lines(source: Input) -> Iterator[bytes]:
    """Each line that isn't blank, without its newline and otherwise as it is; gzip is known by its first bytes."""
    number = 0
    try:
        # A gzip reader straight on the source: one that fills a buffer first would hold back what has come.
        lines: BinaryIO = (
            cast("BinaryIO", gzip.GzipFile(fileobj=source, mode="rb"))
            if source.begins_with(GZIP_MAGIC)
            else cast("BinaryIO", io.BufferedReader(source, READ_BYTES))
        )
        while line := lines.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
                raise UnreadableInputError(
                    f"FILE: line {number} of {source.label} is longer than {MAX_LINE_BYTES // 2**20} MiB,"
                    " which can't be an event: take it out"
                )
            if line.strip():
                yield line.removesuffix(b"\n")
    except (OSError, EOFError, zlib.error) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else quoted(error)
        raise UnreadableInputError(
            f"FILE: {source.label} can't be read after line {number} ({why})"
        ) from error
