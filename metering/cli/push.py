# ruff: noqa: PLC0415 - imported when the command runs, so that --help is quick
"""`metering push`."""

import gzip
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Final, cast

import typer

from metering.cli.errors import CommandError, quoted
from metering.cli.output import JsonOption, counted, progress_bar, say, show_json

if TYPE_CHECKING:
    import redis

BATCH_EVENTS: Final = 500
BATCH_BYTES: Final = 4 * 1024 * 1024
"""So that a batch of long lines doesn't fill the memory."""
MAX_LINE_BYTES: Final = 16 * 1024 * 1024
GZIP_MAGIC: Final = b"\x1f\x8b"
SAFE_AGAIN: Final = "Pushing the same input again is safe: a call is billed once."
SEE_TO_REDIS: Final = "See to the server, or to METERING_REDIS_URL."


class UnreadableInputError(Exception):
    """The input can't be read on. The text says where, and why."""


@dataclass(frozen=True, slots=True)
class Input:
    """Where lines come from."""

    name: str
    lines: BinaryIO
    """What is read: the file itself, or what a gzip file holds."""
    file: BinaryIO
    size_bytes: int | None
    """None where it isn't known."""

    def read_bytes(self) -> int:
        """How much of the file has been read; 0 where that isn't known."""
        return self.file.tell() if self.size_bytes is not None else 0


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

    Lines go in as they are: what can't be billed is kept by the meters (`metering rejected list`). Pushing a file
    twice is safe: a call is billed once.
    """
    from metering.cli.connections import open_redis

    with open_redis() as client, _open_input(file) as source, progress_bar() as bar:
        task = bar.add_task("pushing", total=source.size_bytes, events=0)
        pushed = push_lines(
            client, source, lambda so_far: bar.update(task, completed=source.read_bytes(), events=so_far)
        )
    if as_json:
        show_json({"pushed": pushed})
    else:
        say(f"{counted(pushed, 'event')} pushed.")


@contextmanager
def _open_input(name: str) -> Iterator[Input]:
    """Open a file, or standard input for `-`; gzip is known by its first bytes, so that it may come through a pipe too."""
    if name == "-":
        yield _input("standard input", sys.stdin.buffer)
        return
    with ExitStack() as stack:
        try:
            file = stack.enter_context(Path(name).open("rb"))
        except OSError as error:
            raise CommandError(f"FILE: {name} can't be read ({error.strerror}).") from error
        yield _input(name, file, size_bytes=os.fstat(file.fileno()).st_size or None)


def _input(name: str, file: BinaryIO, *, size_bytes: int | None = None) -> Input:
    peekable = cast("BufferedReader", file)
    try:
        zipped = peekable.peek(len(GZIP_MAGIC)).startswith(GZIP_MAGIC)
    except OSError as error:
        raise CommandError(f"FILE: {name} can't be read ({error.strerror}).") from error
    return Input(name, cast("BinaryIO", gzip.open(file)) if zipped else file, file, size_bytes)


def push_lines(client: "redis.Redis", source: Input, report: Callable[[int], None]) -> int:
    """Push each line of `source` and give their number; `report` gets it after each batch.

    Raises CommandError, saying how many were surely pushed, when the input can't be read on or Redis fails.
    """
    import redis

    pushed = 0
    try:
        for batch in _batches(source):
            answers = append_events(client, batch)
            refusals = [answer for answer in answers if isinstance(answer, redis.RedisError)]
            pushed += len(answers) - len(refusals)
            report(pushed)
            if refusals:
                raise refusals[0]
    except redis.RedisError as error:
        raise CommandError(
            f"Redis can't be reached, or refuses: {quoted(error)}; {counted(pushed, 'event')} surely pushed."
            f" {SEE_TO_REDIS} {SAFE_AGAIN}"
        ) from error
    except UnreadableInputError as error:
        raise CommandError(f"{error}; {counted(pushed, 'event')} before that pushed. {SAFE_AGAIN}") from error
    return pushed


def append_events(client: "redis.Redis", raws: Sequence[bytes]) -> list[Any]:
    """XADD each event in one round trip, once: for each the new entry's id (bytes), or the redis.RedisError that refused it.

    Raises redis.RedisError when the connection fails; then each may or may not be in the stream.
    """
    from workers.stream import EVENT_FIELD, STREAM

    with client.pipeline(transaction=False) as pipeline:
        for raw in raws:
            pipeline.xadd(STREAM, {EVENT_FIELD: raw})
        return pipeline.execute(raise_on_error=False)


def _batches(source: Input) -> Iterator[list[bytes]]:
    """Lines in batches. An UnreadableInputError comes after the batch of what was read before it."""
    batch: list[bytes] = []
    batch_bytes = 0
    try:
        for line in _lines(source):
            batch.append(line)
            batch_bytes += len(line)
            if len(batch) == BATCH_EVENTS or batch_bytes >= BATCH_BYTES:
                yield batch
                batch, batch_bytes = [], 0
    except UnreadableInputError:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def _lines(source: Input) -> Iterator[bytes]:
    """Each line that isn't blank, without its newline and otherwise as it is."""
    number = 0
    try:
        while line := source.lines.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
                raise UnreadableInputError(
                    f"FILE: line {number} of {source.name} is longer than {MAX_LINE_BYTES // 2**20} MiB"
                )
            if line.strip():
                yield line.removesuffix(b"\n")
    except (OSError, EOFError, zlib.error) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else quoted(error)
        raise UnreadableInputError(
            f"FILE: {source.name} can't be read after line {number} ({why})"
        ) from error
