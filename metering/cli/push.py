"""`metering push`."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Final

import typer

from metering.console.errors import CommandError, quoted
from metering.console.event_input import EventLines, Input, OtherShapeError, UnreadableInputError, open_input
from metering.console.output import JsonOption, counted, progress_bar, say, show_json, warn
from metering.console.stopping import stop_signals
from metering.signals.call_stream import append_events

if TYPE_CHECKING:
    import redis

BATCH_EVENTS: Final = 500
BATCH_BYTES: Final = 4 * 1024 * 1024
"""So that a batch of long lines doesn't fill the memory."""
BATCH_AGE_S: Final = 0.1
"""How long a line may wait for others to be pushed with."""
SAFE_AGAIN: Final = "Pushing the same input again is safe: a call is billed once."
SEE_TO_REDIS: Final = "See to the server, or to METERING_REDIS_URL."


class _ToldToStopError(Exception):
    """A signal came: no more is to be read."""


def push(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE|-",
            help="A file of JSON lines in UTF-8, gzip or not; - is standard input.",
            show_default=False,
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Push completed calls into the stream, one JSON object per line.

    Lines go in as they are, and soon, even where more is still to come: what can't be billed is kept by the meters
    (`metering rejected list`). Pushing a file twice is safe: a call is billed once.
    """
    from metering.console.connections import open_redis

    with (
        open_redis() as client,
        open_input(file) as source,
        progress_bar() as bar,
        _noting_signals() as came,
    ):
        task = bar.add_task("pushing", total=source.size_bytes, count=0)
        pusher = Pusher(client, lambda so_far: bar.update(task, completed=source.read_bytes, count=so_far))
        try:
            lines = push_lines(source, pusher, stop=lambda: bool(came))
        except _ToldToStopError:
            warn(
                f"Told to stop: {counted(pusher.pushed, 'event')} pushed, the rest of the input not. {SAFE_AGAIN}"
            )
            status = 128 + came[0]
        else:
            status = 0
            if lines.no_objects:
                _tell_of_no_objects(lines)
    if as_json:
        show_json({"pushed": pusher.pushed})
    elif status == 0:
        why = (
            ""
            if lines.events
            else f"{source.label} {'holds blank lines only' if lines.number else 'is empty'}: "
        )
        say(f"{why}{counted(pusher.pushed, 'event')} pushed.")
    raise typer.Exit(status)


def _tell_of_no_objects(lines: EventLines) -> None:
    """They are pushed all the same: a bad line must not end a live pipe, and nothing of it gets lost."""
    if lines.no_objects == 1:
        which, it = f"Line {lines.first_no_object} is no JSON object: it was pushed as it is", "it"
    else:
        which, it = (
            (
                f"{lines.no_objects:,} of these lines, the first of them line {lines.first_no_object}, are no JSON objects:"
                " they were pushed as they are"
            ),
            "them",
        )
    warn(f"{which}, and the meters will keep {it} as rejected (`metering rejected list`).")


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


def push_lines(source: Input, pusher: Pusher, *, stop: Callable[[], bool]) -> EventLines:
    """Push each line of `source`, up to the end or until `stop()`: then what was read is pushed, and _ToldToStopError raised.

    Gives the lines, which know what they were.

    Raises CommandError, saying how many were surely pushed, when the input can't be read on or Redis fails.
    """
    import redis

    def before_read() -> None:
        if stop():
            raise _ToldToStopError
        pusher.push_old()

    source.before_read = before_read
    lines = EventLines(source)
    try:
        try:
            for line in lines:
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
    except OtherShapeError as error:
        raise CommandError(f"{error}. Nothing was pushed.") from error
    except UnreadableInputError as error:
        raise CommandError(
            f"{error}; {counted(pusher.pushed, 'event')} before that pushed. {SAFE_AGAIN}"
        ) from error
    return lines
