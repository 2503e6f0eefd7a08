"""What a telephony program imports: push completed calls, ask gates, hear signals (docs/reference/call-events.md and
docs/reference/gate.md).

It needs redis-py alone, and none of the product's other modules:

    with MeteringClient("redis://meter.internal:6379/0") as metering:
        if metering.gate(42).open:
            ...  # the call runs, and ends
            metering.push({"call_id": 987654321, "org_id": 42, "tier": "bolt", "direction": "outbound",
                           "duration_seconds": Decimal("75.204"), "ended_at": datetime.now(UTC)})

Says Redis; Valkey is meant as well.
"""

import itertools
import json
import logging
import random
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Context, Decimal
from types import TracebackType
from typing import Any, Final, Self

import redis
from redis.backoff import NoBackoff
from redis.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
    parse_url,
)
from redis.exceptions import (
    AuthorizationError,
    ExternalAuthProviderError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
)
from redis.retry import Retry

# Every Redis key that this file reads or writes.
STREAM: Final = "calls:completed"
EVENT_FIELD: Final = "event"
GATE_PREFIX: Final = "gate:"
SIGNALS_LOG: Final = "balance:signals:log"
SIGNAL_FIELD: Final = "signal"

CHUNK: Final = 500
"""How many events push_many() sends at once, and how many signals are read at once."""
BLOCK_S: Final = 1.0
"""How long Redis is asked to wait for the next signal; as late an iterator may notice that it was closed."""
FIRST_WAIT_S: Final = 0.05
LONGEST_WAIT_S: Final = 1.0
ROLE_CHECK_S: Final = 2.0
"""How often a connection in use asks for its server's role: for so long a gate may be one that a demoted server held."""

_MAX_BYTES: Final = 1_000_000
"""Far more than can be billed. The meter keeps what is too large; but above this the server may hang up, for each try anew."""
_MAX_INT64: Final = 2**63 - 1
_MAX_DURATION_S: Final = 604_800
_MICROSECOND_S: Final = Decimal("0.000001")
_EXACT: Final = Context(prec=28)
"""The program's own decimal context may round or trap."""
_TIME_WITH_OFFSET: Final = re.compile(r"[^T ]+[T ].*(?:Z|[+-][0-9:]+)", re.IGNORECASE | re.DOTALL)
_ENTRY_ID: Final = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")
_BEFORE_ALL: Final = "0-0"

_NOT_NOW: Final = ("MISCONF", "NOREPLICAS", "BUSY", "UNBLOCKED")
"""How the answers begin that pass by themselves, where redis-py has no class for them."""
_LEFT_AT: Final = frozenset({"READONLY", "UNBLOCKED", "MASTERDOWN", "NOREPLICAS", "MISCONF"})
"""What a server answers that is no longer the primary (the first three), or can't be it now: there may be another one by then."""
_ASK_ROLE: Final = b"*1\r\n$5\r\nHELLO\r\n"
"""HELLO tells the role, changes nothing, and no ACL can forbid it."""

_logger = logging.getLogger(__name__)


class TelephonyError(Exception):
    """Redis didn't do what it was asked. Which subclass it is says what to do about it."""

    def __init__(self, message: str, *, pushed: int = 0) -> None:
        super().__init__(message)
        self.pushed = pushed
        """Of push_many(): so many events, counted from the first, were surely pushed."""


class QueueFull(TelephonyError):  # noqa: N818 - says what is the matter
    """Redis is out of memory and takes no events. Keep the event and push it again: room comes as the meter catches up."""


class Unreachable(TelephonyError):  # noqa: N818 - says what is the matter
    """Redis is away, too slow, loading its data or can't write now; that passes.

    It isn't known whether an event arrived: keep it and push it again. A call is billed once, however often it comes.
    """


class Refused(TelephonyError):  # noqa: N818 - says what is the matter
    """Redis won't do it, and waiting won't help: a password, a permission, a key that holds something else.

    Keep the event until the cause is mended.
    """


class SignalsLost(TelephonyError):  # noqa: N818 - says what is the matter
    """The log no longer holds the signal after which to go on, so later ones may be gone as well.

    Start over: signals(), then gate() of every org whose state you keep, then the new signals.
    """


class InvalidField(ValueError):  # noqa: N818 - says what is the matter
    """The program said what can't be right, as in a missing field. It wasn't sent; the same again fails again."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(field, problem)
        self.field = field
        """The name of the field."""
        self.pushed = 0
        """Of push_many(): so many events, all those before this one, were surely pushed."""

    def __str__(self) -> str:
        return f"{self.args[0]} {self.args[1]}"


@dataclass(frozen=True, slots=True)
class Gate:
    """Whether an org's new calls may start, inbound and outbound alike. All None where the org has no gate."""

    org_id: int
    state: str | None
    """`open` or `exhausted`."""
    balance_cents: int | None
    """Whole US cents; what runs at the moment isn't charged yet."""
    version: int | None
    """Rises with every change of the balance."""

    @property
    def open(self) -> bool:
        """Only this lets a call start: a gate that is missing is not open."""
        return self.state == "open"


@dataclass(frozen=True, slots=True)
class Signal:
    """One entry of the log of signals."""

    id: str
    """What to give to signals() as `since`, to go on after this one."""
    type: str
    """`balance.exhausted`, `balance.restored`, or `auto_reload.` and more; there will be others, so ignore what you don't know.

    Look at it first: only signals about a balance have one, and a version.
    """
    org_id: int
    at: datetime
    """When it was said; aware."""
    balance_cents: int | None
    """Whole US cents. None where the signal isn't about a balance."""
    version: int | None
    """The gate's. A gate that was read with this version or a higher one knows of it already."""
    raw: dict[str, Any] = field(repr=False, hash=False)
    """The whole message."""


class MeteringClient:
    """Telephony's side of the metering. Threads may share it; it connects when it is first used."""

    def __init__(self, server: str | redis.Redis, *, timeout_s: float = 2.0, tries: int = 3) -> None:
        """Use `server`: a URL (`redis://`, `rediss://`, `unix://`), or a redis.Redis for what a URL can't say.

        `timeout_s` limits each connecting and each answer. A push is tried `tries` times, so it takes at most about
        2 * tries * timeout_s. A redis.Redis is used as it is, with time-outs and retries of its own, and not closed; but
        connections to a server that is not the primary are closed, so that its next ones find the new one.

        Raises ValueError where the URL is none.
        """
        if timeout_s <= 0 or tries < 1:
            raise ValueError("timeout_s must be above 0 and tries at least 1")
        self._own = isinstance(server, str)
        self._client = _connected_to(server, timeout_s) if isinstance(server, str) else server
        self._tries = tries
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections that aren't in use, and end what signals() gave, as Signals.close() does."""
        self._closed = True
        if self._own:
            # Not those in use: redis-py would pull them away under another thread's read.
            self._client.connection_pool.disconnect(inuse_connections=False)

    def push(self, event: Mapping[str, object]) -> str:
        """Push one completed call; gives its stream id.

        The fields are those of docs/reference/call-events.md#fields. `duration_seconds` may be an int, a float or a Decimal
        with at most 6
        decimals; `ended_at` text with an offset or an aware datetime. Only what can't be right in any call is refused here;
        the meter judges the rest, and keeps what it can't bill.

        A push that may not have arrived is repeated by itself, with back-off, so the same event may stand in the stream twice.
        That is harmless: (org_id, call_id) is billed once.

        Raises InvalidField; QueueFull, Unreachable or Refused once it gives up: then keep the event.
        """
        return self._append([_encoded(event)], 0)[0]

    def push_many(self, events: Iterable[Mapping[str, object]]) -> list[str]:
        """Push completed calls, as push() does, many at once; gives their stream ids, in order.

        Raises what push() raises, and what `events` raises. The error's `pushed` says how many events, counted from the first,
        were surely pushed; of the others some may have been. Go on from there, or push all again: a call is billed once.
        """
        stream_ids: list[str] = []
        payloads: list[bytes] = []
        for event in events:
            try:
                payloads.append(_encoded(event))
            except InvalidField as invalid:
                stream_ids += self._append(payloads, len(stream_ids))
                invalid.pushed = len(stream_ids)
                raise
            if len(payloads) == CHUNK:
                stream_ids += self._append(payloads, len(stream_ids))
                payloads.clear()
        return stream_ids + self._append(payloads, len(stream_ids))

    def gate(self, org_id: int) -> Gate:
        """Ask, in one round trip, whether calls of `org_id` may start.

        Raises Unreachable or Refused when the gate can't be asked. There is no default, on purpose: letting the call start may
        give it away, since the org may be exhausted; refusing it turns customers away who have paid. Which is worse, and for
        how long, only the caller can say. It is asked once, without repeating, because a caller is waiting; only a server that
        answers that it is no longer the primary is left, and its successor asked.

        The answer comes from the primary: of one that was demoted it is at most ROLE_CHECK_S older than that.
        """
        key = f"{GATE_PREFIX}{_id('org_id', org_id)}"
        try:
            try:
                found = self._read_gate(key)
            except redis.RedisError as error:
                if not _tells_to_leave(error):
                    raise
                _leave_if_told(self._client, error)
                found = self._read_gate(key)
        except redis.RedisError as error:
            _leave_if_told(self._client, error)
            raise _failure(
                error,
                f"the gate of org {org_id} can't be asked: whether its calls may start is yours to decide",
            ) from error
        state, balance_cents, version = found
        return Gate(
            org_id,
            None if state is None else _text(state),
            _whole_number(balance_cents),
            _whole_number(version),
        )

    def signals(self, since: str | None = None) -> "Signals":
        """Hear every signal after `since`, the id of the last one seen; without it, from this call on (not from the first next).

        To keep the states of gates: signals() first, then gate() of each org, then the signals, ignoring those whose version
        isn't above the one held. So none falls between. Signals are kept in a log of the last 100,000 or so.

        Raises ValueError for a `since` that is no id. Without `since`, Redis is asked at once: raises Unreachable or Refused.
        """
        if since is not None and not _ENTRY_ID.fullmatch(since):
            raise ValueError(f"since must be the id of a signal, such as 1776709506201-0, not {since!r}")
        return Signals(self._client, since, lambda: self._closed)

    def _read_gate(self, key: str) -> Any:
        """One round trip. A client that was given may hold connections to anybody, so it is asked for the role each time."""
        names = ["state", "balance_cents", "version"]
        if self._own:
            return self._client.hmget(key, names)
        with self._client.pipeline(transaction=False) as pipeline:
            pipeline.execute_command("HELLO")  # type: ignore[no-untyped-call]
            pipeline.hmget(key, names)
            about, found = pipeline.execute(raise_on_error=False)
        if isinstance(found, Exception):
            raise found
        _check_role(about)
        return found

    def _append(self, payloads: Sequence[bytes], pushed_before: int) -> list[str]:
        """Append all of `payloads`; repeat from the first that isn't surely in, as long as that may help."""
        stream_ids: list[str] = []
        waits = itertools.islice(_waits_s(), self._tries - 1)
        while len(stream_ids) < len(payloads):
            error = self._try_to_append(payloads[len(stream_ids) :], stream_ids)
            if error is None:
                continue
            _leave_if_told(self._client, error)
            failure = _failure(
                error,
                "it isn't known whether it arrived, so push it again: a call is billed once",
                pushed_before + len(stream_ids),
            )
            wait_s = next(waits, None) if isinstance(failure, Unreachable) else None
            if wait_s is None:
                raise failure from error
            time.sleep(wait_s)
        return stream_ids

    def _try_to_append(self, payloads: Sequence[bytes], stream_ids: list[str]) -> Exception | None:
        """Send all of `payloads`; add the ids of those before the first that failed, and give its error."""
        try:
            with self._client.pipeline(transaction=False) as pipeline:
                for payload in payloads:
                    pipeline.xadd(STREAM, {EVENT_FIELD: payload})
                answers = pipeline.execute(raise_on_error=False)
        except redis.RedisError as error:
            return error
        for answer in answers:
            if isinstance(answer, Exception):
                return answer
            stream_ids.append(_text(answer))
        return None


class Signals:
    """An iterator of signals, in the order in which they were said; waits for the next, for ever.

    It outlives disconnects and restarts of Redis (given its append-only file), and goes on where it was: nothing is missing and
    nothing comes twice. It says so in the log of this module. One thread may use it; any may close() it, also from a signal
    handler: then it ends.

    next() raises SignalsLost when it can't go on where it was, and Refused.
    """

    def __init__(self, client: redis.Redis, since: str | None, ended: Callable[[], bool]) -> None:
        self._client = client
        self._asks_role = not issubclass(client.connection_pool.connection_class, _LeavesReplicas)
        self._role_due_s = 0.0
        self._ended = ended
        self._closed = False
        self._read: deque[Signal] = deque()
        self._waits_s: Iterator[float] | None = None
        self._removed_before = 0
        timeout_s = client.connection_pool.connection_kwargs.get("socket_timeout")
        self._block_ms = max(int(1000 * min(BLOCK_S, timeout_s / 2 if timeout_s else BLOCK_S)), 1)
        if since is None:
            since = self._last_id()
        self._read_up_to = since
        self.position = since
        """What to give to signals() as `since` to go on from here: the id of the last signal given, if there was one."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the iteration: within about a second where next() waits, or a time-out where Redis is away."""
        self._closed = True

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Signal:
        # Plain flags, no lock or event: a signal handler may run in the thread that would hold it.
        while not (self._closed or self._ended()):
            if self._read:
                signal = self._read.popleft()
                self.position = signal.id
                return signal
            self._read_or_wait()
        raise StopIteration

    def _last_id(self) -> str:
        """The id of the newest signal; where there is none, everything that comes is new."""
        try:
            with self._client.pipeline(transaction=True) as pipeline:
                pipeline.xrevrange(SIGNALS_LOG, count=1)
                pipeline.xinfo_stream(SIGNALS_LOG)
                newest, about = pipeline.execute(raise_on_error=False)
            if isinstance(newest, Exception):
                raise newest
            if not newest:
                self._removed_before = _removed(about)
        except redis.RedisError as error:
            _leave_if_told(self._client, error)
            raise _failure(error, "the signals can't be listened to: call signals() again") from error
        return _text(newest[0][0]) if newest else _BEFORE_ALL

    def _read_or_wait(self) -> None:
        try:
            self._ask_role_if_due()
            entries = self._next_entries()
            if not entries:
                # Only to be woken: which signals come next, and whether all are there, is decided above.
                self._client.xread({SIGNALS_LOG: self._read_up_to}, count=1, block=self._block_ms)
        except redis.RedisError as error:
            _leave_if_told(self._client, error)
            failure = _failure(error, "the signals can't be read")
            if not isinstance(failure, Unreachable):
                raise failure from error
            if self._waits_s is None:
                self._waits_s = _waits_s()
                _logger.warning("signals: Redis is away and they go on when it is back: %s", error)
            time.sleep(next(self._waits_s))
            return
        if self._waits_s is not None:
            self._waits_s = None
            _logger.info("signals: Redis is back, and they go on after %s", self._read_up_to)
        for entry_id, fields in entries:
            self._read_up_to = _text(entry_id)
            signal = _signal(self._read_up_to, fields)
            if signal is not None:
                self._read.append(signal)

    def _ask_role_if_due(self) -> None:
        """Ask a client that was given; of our own each connection asks by itself."""
        if self._asks_role and time.monotonic() >= self._role_due_s:
            with self._client.pipeline(transaction=False) as pipeline:
                pipeline.execute_command("HELLO")  # type: ignore[no-untyped-call]
                _check_role(*pipeline.execute(raise_on_error=False))
            self._role_due_s = time.monotonic() + ROLE_CHECK_S

    def _next_entries(self) -> list[Any]:
        """What stands in the log after the last entry read; SignalsLost unless it is certain that nothing is missing.

        It is certain while that entry is still there itself, for the log loses the oldest first. All else is uncertain, and
        silence would leave somebody with a wrong state for ever:
        - The log was cut off behind it. The reader was away for too long.
        - The log was emptied, or began anew. An org that became exhausted while it had no gate has no signal either.
        - A crash took the end of the log with it (its file is written to disk every second), and the clock may have been set
          back. Taking up at the end that is left would be wrong: of two changes that are gone, the reader may have seen one,
          and the gate, back at the state before both, needs no third.
        """
        if self._read_up_to != _BEFORE_ALL:
            found: Any = self._client.xrange(SIGNALS_LOG, min=self._read_up_to, count=CHUNK + 1)
            if found and _text(found[0][0]) == self._read_up_to:
                return list(found[1:])
        else:
            # No entry to go by, but none may have been removed since. A log that was emptied before it was first read looks
            # like one that began late, and that is no harm: either way no gate was open before.
            with self._client.pipeline(transaction=True) as pipeline:
                pipeline.xrange(SIGNALS_LOG, count=CHUNK)
                pipeline.xinfo_stream(SIGNALS_LOG)
                found, about = pipeline.execute(raise_on_error=False)
            if _removed(about) == self._removed_before:
                return list(found)
        raise SignalsLost(
            f"The log of signals doesn't hold what came after {self._read_up_to}, or not for certain. "
            "Call signals() again, then gate() of every org whose state you keep, then go on with the new signals."
        )


class _NotPrimary(redis.ConnectionError, redis.ResponseError):
    """The server takes no writes now, and its connection is closed.

    What passes by trying again is a connection error; being an answer too, it leaves a pipeline those that came before it.
    """


@dataclass(slots=True)
class _Primary:
    """What the connections of one client know of their server."""

    changes: int = 0
    """How often it has ceased to be the primary. A connection from before the last time is closed before it is used again."""


class _LeavesReplicas(AbstractConnection):
    """A connection that is closed as soon as its server isn't the primary; the command that found out raises _NotPrimary.

    A server that is demoted keeps its connections, refuses what is written, and answers what is read with what it has. So each
    connection asks for the role: with its first command, then every ROLE_CHECK_S along with another, in the same round trip.
    """

    def __init__(self, *, primary: _Primary, **options: Any) -> None:
        self._primary = primary
        self._forget()
        super().__init__(**options)

    def _forget(self) -> None:
        self._changes = self._primary.changes
        self._was_primary = False
        self._role_due_s = 0.0
        self._asked = False
        """Whether the next answer is the role."""
        self._left = False
        """Whether answers that are still waited for won't come."""

    def connect(self) -> None:
        """Connect, unless it is connected, and nobody has found since that this is the wrong server."""
        if self.is_connected and self._changes != self._primary.changes:
            self.disconnect()
        self._left = False
        super().connect()  # type: ignore[no-untyped-call]

    def disconnect(self, *args: Any, **options: Any) -> None:
        """Close the socket."""
        self._forget()
        super().disconnect(*args, **options)  # type: ignore[no-untyped-call]

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """Send, and where it is due ask for the role before: the server answers both in one go."""
        if not self.is_connected:
            self._left = False
            self.connect_check_health(check_health=False)
        if check_health and not self._asked and time.monotonic() >= self._role_due_s:
            self._asked = True
            command = [_ASK_ROLE, *([command] if isinstance(command, str | bytes) else command)]
        super().send_packed_command(command, check_health)  # type: ignore[no-untyped-call]

    def read_response(self, *args: Any, **options: Any) -> Any:
        """The answer to what was sent. Raises _NotPrimary where the server isn't the primary."""
        if self._left:
            raise _NotPrimary("what this server answered wasn't read: it takes no writes now")
        if self._asked:
            self._read_role()
        try:
            return super().read_response(*args, **options)
        except redis.ResponseError as error:
            if _tells_to_leave(error):
                self._leave(error)
            raise

    def _read_role(self) -> None:
        self._asked = False
        try:
            about = super().read_response()
        except redis.ResponseError:  # it knows no HELLO (a proxy, perhaps), so isn't asked again
            self._role_due_s = float("inf")
            return
        try:
            _check_role(about)
        except _NotPrimary as error:
            self._leave(error)
        self._was_primary = True
        self._role_due_s = time.monotonic() + ROLE_CHECK_S

    def _leave(self, why: redis.ResponseError) -> None:
        # Not where it never was the primary: others may have found the right one meanwhile.
        if self._was_primary and self._changes == self._primary.changes:
            self._primary.changes += 1
        self.disconnect()
        self._left = True
        raise (
            why if isinstance(why, _NotPrimary) else _NotPrimary(f"this server takes no writes now: {why}")
        ) from why


class _PrimaryConnection(_LeavesReplicas, Connection):
    """Over TCP."""


class _PrimarySSLConnection(_LeavesReplicas, SSLConnection):
    """Over TLS."""


class _PrimaryUnixConnection(_LeavesReplicas, UnixDomainSocketConnection):
    """Over a Unix socket."""


_CLASSES: Final[dict[type, type]] = {
    Connection: _PrimaryConnection,
    SSLConnection: _PrimarySSLConnection,
    UnixDomainSocketConnection: _PrimaryUnixConnection,
}


def _connected_to(url: str, timeout_s: float) -> redis.Redis:
    """A client that never repeats a command by itself, and leaves a server that isn't the primary. Nothing connects yet."""
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),
        "client_name": "metering-client",
        "protocol": 2,
    }
    options |= parse_url(url)  # type: ignore[no-untyped-call]
    options["connection_class"] = _CLASSES[options.get("connection_class", Connection)]
    return redis.Redis.from_pool(redis.ConnectionPool(primary=_Primary(), **options))


def _tells_to_leave(error: Exception) -> bool:
    """Whether an answer says that the server is no longer the primary, or can't be it now."""
    if not isinstance(error, redis.ResponseError):
        return False
    said = str(error)
    code = error.status_code or said.partition(" ")[0]
    if code == "EXECABORT":  # a transaction that was begun before
        code = said.rpartition("because of: ")[2].partition(" ")[0]
    return code in _LEFT_AT or isinstance(error, _NotPrimary)


def _check_role(about: Any) -> None:
    """Take what HELLO answered. Raises _NotPrimary if it came from a server that isn't the primary."""
    if isinstance(about, redis.ResponseError) and not _tells_to_leave(about):
        return  # it knows no HELLO
    if isinstance(about, Exception):
        raise about
    said = about if isinstance(about, Mapping) else dict(zip(about[::2], about[1::2], strict=True))
    role = _text(said.get(b"role", said.get("role")))
    if role != "master":
        raise _NotPrimary(f"this server takes no writes now: it says that it is a {role}")


def _leave_if_told(client: redis.Redis, error: Exception) -> None:
    """Close the idle connections of a client that was given, where a server said that it isn't the primary."""
    if not _tells_to_leave(error) or issubclass(client.connection_pool.connection_class, _LeavesReplicas):
        return  # our own close by themselves
    client.connection_pool.disconnect(inuse_connections=False)
    if client.connection is not None:  # its only one
        with client.single_connection_lock:
            client.connection.disconnect()  # type: ignore[no-untyped-call]


def _removed(about: Any) -> int:
    """How many entries the log had and no longer has."""
    if isinstance(about, redis.ResponseError) and "no such key" in str(about):
        return 0
    if isinstance(about, Exception):
        raise about
    return int(about["entries-added"]) - int(about["length"])


def _signal(entry_id: str, fields: Mapping[Any, Any]) -> Signal | None:
    """The signal in an entry of the log; None for what isn't one, which somebody else must have put there."""
    try:
        raw = json.loads({_text(name): text for name, text in fields.items()}[SIGNAL_FIELD])
        return Signal(
            entry_id,
            str(raw["type"]),
            int(raw["org_id"]),
            datetime.fromisoformat(raw["at"]),
            raw.get("balance_cents"),
            raw.get("version"),
            raw,
        )
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        _logger.warning("signals: entry %s is passed over, it is no signal: %r", entry_id, error)
        return None


def _failure(error: Exception, meanwhile: str, pushed: int = 0) -> TelephonyError:
    """What redis-py's error means to a telephony program; `meanwhile` is what follows when the trouble passes by itself."""
    said = str(error) or type(error).__name__
    surely = f" The first {pushed} were surely pushed." if pushed else ""
    if isinstance(error, OutOfMemoryError):
        return QueueFull(
            f"Redis is out of memory and takes no events: keep the event and push it when there is room ({said}).{surely}",
            pushed=pushed,
        )
    if isinstance(error, redis.AuthenticationError | AuthorizationError | ExternalAuthProviderError):
        passes = False  # though redis-py counts them among the connection errors
    else:
        passes = isinstance(
            error, redis.ConnectionError | redis.TimeoutError | ReadOnlyError | MasterDownError
        ) or said.startswith(_NOT_NOW)
    if passes:
        return Unreachable(f"Redis is away or can't do it now; {meanwhile} ({said}).{surely}", pushed=pushed)
    return Refused(f"Redis refuses, and waiting won't help ({said}).{surely}", pushed=pushed)


def _waits_s() -> Iterator[float]:
    """Seconds to wait before each next try, without end: doubling, and each shortened at random by up to half."""
    bound_s = FIRST_WAIT_S
    while True:
        yield bound_s * random.uniform(0.5, 1.0)  # noqa: S311 - spreading load needs no secrets
        bound_s = min(bound_s * 2, LONGEST_WAIT_S)


def _text(answer: Any) -> str:
    """A client that was given may decode by itself."""
    return answer.decode(errors="replace") if isinstance(answer, bytes) else str(answer)


def _whole_number(answer: Any) -> int | None:
    try:
        return None if answer is None else int(answer)
    except ValueError:  # somebody else's doing; the state decides alone
        return None


def _encoded(event: Mapping[str, object]) -> bytes:
    """The event as JSON. Raises InvalidField."""
    if not isinstance(event, Mapping):
        raise InvalidField("event", "must be a mapping of fields to values")
    fields = dict(event)
    for name, check in _REQUIRED.items():
        if name not in fields:
            raise InvalidField(name, "is missing")
        fields[name] = check(name, fields[name])
    for name, (kind, problem) in _OPTIONAL.items():
        value = fields.get(name)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise InvalidField(name, problem)
    try:
        payload = _json(fields)
    except (TypeError, ValueError, RecursionError):
        for name, value in fields.items():
            try:
                _json({name: value})
            except (TypeError, ValueError, RecursionError) as error:
                raise InvalidField(str(name), f"can't be written as JSON: {error}") from error
        raise
    if len(payload) > _MAX_BYTES:
        raise InvalidField(
            "event", f"is {len(payload)} bytes long, and can't be billed: leave out some of its metadata"
        )
    return payload


def _json(fields: Mapping[str, object]) -> bytes:
    try:
        # As it is, not as escapes: those take up to three times the room, and there are limits to it.
        return _dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair, which UTF-8 hasn't
        return _dumps(fields, ensure_ascii=True).encode()


def _dumps(fields: Mapping[str, object], *, ensure_ascii: bool) -> str:
    return json.dumps(
        fields, ensure_ascii=ensure_ascii, allow_nan=False, separators=(",", ":"), default=_plain_mapping
    )


def _plain_mapping(value: object) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is none of its types")


def _id(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MAX_INT64:
        raise InvalidField(name, f"must be an integer from 1 to {_MAX_INT64}")
    return value


def _tier(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidField(name, "must be text")
    return value


def _direction(name: str, value: object) -> str:
    if not isinstance(value, str) or value not in {"inbound", "outbound"}:
        raise InvalidField(name, "must be inbound or outbound")
    return value


def _duration_s(name: str, value: object) -> int | float:
    if isinstance(value, float):
        exact = Decimal(float.__repr__(value))  # as JSON writes it
    elif isinstance(value, int | Decimal) and not isinstance(value, bool):
        exact = Decimal(value)
    else:
        raise InvalidField(name, "must be an int, a float or a Decimal, in seconds")
    if not exact.is_finite() or not 0 <= exact <= _MAX_DURATION_S:
        raise InvalidField(name, f"must be from 0 to {_MAX_DURATION_S} seconds")
    if exact != exact.quantize(_MICROSECOND_S, context=_EXACT):
        raise InvalidField(name, "must have at most 6 decimals: round it to microseconds")
    # At most 12 digits are left, and a float gives up to 15 back as they were.
    return value if isinstance(value, int) else float(exact)


def _ended_at(name: str, value: object) -> str:
    if isinstance(value, str):
        if not _TIME_WITH_OFFSET.fullmatch(value):
            raise InvalidField(
                name, "must be an ISO 8601 date and time with an offset, such as 2026-04-20T18:25:06.201Z"
            )
        return value
    if not isinstance(value, datetime) or value.utcoffset() is None:
        raise InvalidField(name, "must be an aware datetime, or text with an offset")
    try:
        at = value.astimezone(UTC)
    except OverflowError:
        raise InvalidField(name, "must be within the years 1 to 9999") from None
    precision = "microseconds" if at.microsecond % 1000 else "milliseconds"
    return at.isoformat(timespec=precision).replace("+00:00", "Z")


_REQUIRED: Final[dict[str, Callable[[str, object], object]]] = {
    "call_id": _id,
    "org_id": _id,
    "tier": _tier,
    "direction": _direction,
    "duration_seconds": _duration_s,
    "ended_at": _ended_at,
}
# Their kinds only, for a program's mistakes. What a caller sent along must never keep the call from being billed.
_OPTIONAL: Final[dict[str, tuple[type, str]]] = {
    "phone_number_id": (int, "must be an integer or None"),
    "phone_number_value": (str, "must be text or None"),
    "metadata": (Mapping, "must be a mapping or None"),
}
