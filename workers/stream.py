"""The stream of completed calls, as one consumer of its consumer group sees it (docs/reference/call-events.md#the-stream)."""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import redis

from metering.runtime.lua import lua_script
from metering.runtime.names import EVENT_FIELD, STREAM

GROUP: Final = "meter"

PAGE: Final = 500
"""How many pending entries are looked at or claimed at once."""

MAX_BATCH_BYTES: Final = 2_000_000
"""About how much a batch may hold, so that a backlog of large events doesn't fill a meter's memory."""
ACKED_AT_ONCE: Final = 1_000
"""How many entries are taken out by one call, two milliseconds: Redis answers nobody meanwhile who asks for a gate."""
PART: Final = 50
"""How many new entries are asked for at once: the rest of a batch follows at once, unless these are large."""

_TAKE_OUT: Final = lua_script(__package__, "take_out.lua")
_DELETE_IDLE_CONSUMERS: Final = lua_script(__package__, "delete_idle_consumers.lua")
_OLDEST_AGE_MS: Final = lua_script(__package__, "oldest_age_ms.lua")


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One entry of the stream."""

    stream_id: str
    raw: bytes
    """The `event` field's bytes; of an entry without that field, or with several, all its fields as lines `name=value`."""
    events: int = 1
    """How many fields `event` it has; only an entry with one can be billed."""


@dataclass(frozen=True, slots=True)
class Pending:
    """An entry that was delivered to some consumer and isn't acked."""

    stream_id: str
    consumer: str
    idle_ms: int
    deliveries: int


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits in the stream. Entries leave it only after their effect is committed."""

    length: int
    pending: int
    oldest_age_s: float = field(default=0.0, compare=False)
    """How long the oldest of them has been there; 0 where there is none."""

    @property
    def lag(self) -> int:
        """Entries that no meter has read. `XINFO GROUPS` can't say, once consumers delete out of order."""
        return max(self.length - self.pending, 0)


class CallStream:
    """The stream, read as `consumer`. Every method may raise redis.RedisError."""

    def __init__(self, client: redis.Redis, consumer: str) -> None:
        self._client = client
        self.consumer = consumer
        self._take_out = client.register_script(_TAKE_OUT)
        # As Redis says it: made into a dict, of fields with the same name all but the last would be lost without a trace.
        client.set_response_callback("XCLAIM", _as_it_came)

    def join(self) -> None:
        """Make the group unless it is there, from the stream's beginning: nothing that was pushed is skipped."""
        if (
            self._group_exists()
        ):  # looked for first: a Redis without memory refuses to make one, but lets entries be taken out
            return
        try:
            self._client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
        except redis.ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    def _group_exists(self) -> bool:
        try:
            groups: Any = self._client.xinfo_groups(STREAM)
        except redis.ResponseError as error:
            if "no such key" in str(error):
                return False
            raise
        return any(group["name"] == GROUP.encode() for group in groups)

    def parts(
        self,
        *,
        limit: int,
        block_ms: int | None,
        limit_bytes: int = MAX_BATCH_BYTES,
        goes_on: Callable[[], bool] = lambda: True,
    ) -> Generator[list[Entry]]:
        """What nobody has read yet, a part at a time: as much as is there, at most `limit` entries, while it `goes_on`.

        Waits up to `block_ms` only where nothing is. There are no more parts once there are `limit_bytes`: how large entries are
        is known only when they have come. While the caller works on a part the next one is on its way; if the caller stops before
        the end, or a part can't be read, what was on its way stays pending.
        """
        count = size_bytes = 0
        connection = self._client.connection_pool.get_connection()
        asked = min(limit, PART)
        try:
            self._ask(connection, asked, block_ms)
            while asked:
                answer = connection.read_response()
                part = [_entry(*item) for item in answer[0][1]] if answer else []
                count, size_bytes = count + len(part), size_bytes + _size_bytes(part)
                ended = len(part) < asked or size_bytes >= limit_bytes or not goes_on()
                asked = 0 if ended else min(limit - count, PART)
                if asked:
                    self._ask(connection, asked, None)
                if part:
                    yield part
        finally:
            if asked:
                connection.disconnect()  # type: ignore[no-untyped-call] # or the next command would be given this one's answer
            self._client.connection_pool.release(connection)

    def _ask(self, connection: Any, limit: int, block_ms: int | None) -> None:
        block = () if block_ms is None else ("BLOCK", block_ms)
        group = ("GROUP", GROUP, self.consumer, "COUNT", limit)
        connection.send_command("XREADGROUP", *group, *block, "STREAMS", STREAM, ">")

    def pending(self, *, consumer: str | None = None, min_idle_ms: int = 0) -> Iterator[list[Pending]]:
        """Pages of entries delivered but not acked, oldest first: `consumer`'s, or everybody's."""
        start = "-"
        while True:
            who = [consumer] if consumer is not None else []
            rows = _command(
                self._client,
                "XPENDING",
                STREAM,
                GROUP,
                "IDLE",
                min_idle_ms,
                start,
                "+",
                PAGE,
                *who,
                parse_detail=True,
            )
            page = [
                Pending(
                    row["message_id"].decode(),
                    row["consumer"].decode(errors="replace"),
                    row["time_since_delivered"],
                    row["times_delivered"],
                )
                for row in rows
            ]
            if not page:
                return
            yield page
            start = f"({page[-1].stream_id}"

    def claim(self, stream_ids: Sequence[str], *, min_idle_ms: int) -> list[Entry]:
        """Take over those of `stream_ids` that have been idle for so long; entries deleted meanwhile just leave the group."""
        answer = _command(self._client, "XCLAIM", STREAM, GROUP, self.consumer, min_idle_ms, *stream_ids)
        return [_entry(*item) for item in answer if item is not None]

    def reset_deliveries(self, stream_ids: Sequence[str]) -> None:
        """Count the deliveries of those of `stream_ids` that are still pending from one again."""
        reset = ("RETRYCOUNT", 1, "JUSTID")
        _command(
            self._client, "XCLAIM", STREAM, GROUP, self.consumer, 0, *stream_ids, *reset, parse_justid=True
        )

    def ack(self, stream_ids: Sequence[str]) -> None:
        """Take entries out of the group and the stream, each from both or neither: one acked but not deleted would never leave.

        What isn't pending stays where it is: after a FLUSHALL, a new entry can bear the id of one that was read before.
        """
        for first in range(0, len(stream_ids), ACKED_AT_ONCE):
            self._take_out(keys=[STREAM], args=[GROUP, *stream_ids[first : first + ACKED_AT_ONCE]])

    def delete_idle_consumers(self, *, idle_ms: int, leave: bool = False) -> int:
        """Delete consumers that hold nothing and have been idle for so long; with `leave`, this one too. Gives their number."""
        own = self.consumer if leave else ""
        return int(self._client.eval(_DELETE_IDLE_CONSUMERS, 1, STREAM, GROUP, own, idle_ms))


def backlog(client: redis.Redis) -> Backlog:
    """How much waits in the stream, and how much of it some meter has in hand."""
    with client.pipeline(transaction=True) as pipeline:
        pipeline.xlen(STREAM)
        pipeline.eval_ro(_OLDEST_AGE_MS, 1, STREAM)
        _command(pipeline, "XPENDING", STREAM, GROUP)
        length, age_ms, summary = pipeline.execute(raise_on_error=False)
    for answer in (length, age_ms):
        if isinstance(answer, Exception):
            raise answer
    if isinstance(summary, redis.ResponseError):  # no group yet, so nobody has anything in hand
        return Backlog(length, 0, age_ms / 1_000)
    if isinstance(summary, Exception):
        raise summary
    return Backlog(length, int(summary["pending"]), age_ms / 1_000)


def _command(client: redis.Redis, *words: str | int, **options: bool) -> Any:
    """A command word by word: redis-py's own methods for these spend more time on options than the server on the command."""
    return client.execute_command(*words, **options)  # type: ignore[no-untyped-call]


def _size_bytes(entries: Sequence[Entry]) -> int:
    return sum(len(entry.raw) for entry in entries)


def _as_it_came(answer: Any, **_options: Any) -> Any:
    return answer


def _entry(stream_id: bytes, fields: list[bytes] | None) -> Entry:
    """An entry from its names and values in turn; None where it was deleted while it was pending."""
    if fields is not None and len(fields) == 2 and fields[0] == EVENT_FIELD:  # noqa: PLR2004 - a name and a value
        return Entry(stream_id.decode(), fields[1])
    pairs = list(zip((fields or [])[::2], (fields or [])[1::2], strict=True))
    events = [value for name, value in pairs if name == EVENT_FIELD]
    if len(events) == 1:
        return Entry(stream_id.decode(), events[0])
    return Entry(stream_id.decode(), b"\n".join(name + b"=" + value for name, value in pairs), len(events))
