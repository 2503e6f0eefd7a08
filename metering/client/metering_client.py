"""The client: pushes events, asks gates, holds what calls may cost, follows signals."""

import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import redis

from metering.client.answers import as_text, whole_number
from metering.client.backoff import backoff_s
from metering.client.closing import ClosedByWith
from metering.client.errors import InvalidField, Unreachable, failure_of, hold_failure_of
from metering.client.event_encoding import check_id, encode_event
from metering.client.gate import Gate
from metering.client.held_call import MAX_CENTS, MAX_TTL_SECONDS, HeldCall, check_amount, read_answer
from metering.client.keys import EVENT_FIELD, GATE_PREFIX, HOLD_ENDS_SUFFIX, HOLDS_PREFIX, STREAM
from metering.client.limits import CHUNK
from metering.client.primary import check_role, connect, leave_if_told, tells_to_leave
from metering.client.signals import ENTRY_ID, Signals


class MeteringClient(ClosedByWith):
    """Telephony's side of the metering. Threads may share it; it connects when it is first used."""

    def __init__(
        self, server: str | redis.Redis, *, timeout_s: float = 2.0, tries: int = 3, replicas: int = 0
    ) -> None:
        """Use `server`: a URL (`redis://`, `rediss://`, `unix://`, `redis+sentinel://h1,h2,h3/name`), or a redis.Redis for what a
        URL can't say.

        `timeout_s` limits each connecting and each answer. A push is tried `tries` times, so it takes at most about
        2 * tries * timeout_s. A redis.Redis is used as it is, with time-outs and retries of its own, and not closed; but
        connections to a server that is not the primary are closed, so that its next ones find the new one.

        With `replicas`, a push counts as arrived only once so many replicas have it too, as WAIT tells: a primary that is lost
        suddenly takes nothing along then. They must answer within half of `timeout_s`. The user needs +wait.

        Raises ValueError where the URL is none.
        """
        if timeout_s <= 0 or tries < 1 or replicas < 0:
            raise ValueError("timeout_s must be above 0, tries at least 1 and replicas at least 0")
        self._replicas = replicas
        self._wait_ms = max(int(timeout_s * 500), 1)
        self._own = isinstance(server, str)
        self._client = connect(server, timeout_s) if isinstance(server, str) else server
        self._tries = tries
        self._closed = False

    def close(self) -> None:
        """Close the connections that aren't in use, and end what signals() gave, as Signals.close() does."""
        self._closed = True
        if self._own:
            # Not those in use: redis-py would pull them away under another thread's read.
            self._client.connection_pool.disconnect(inuse_connections=False)

    def push(self, event: Mapping[str, object]) -> str:
        """Push one completed call; gives its stream id.

        The fields are those of docs/reference/call-events.md#fields. `duration_seconds` may be an int, a float or a Decimal
        with at most 6 decimals; `ended_at` text with an offset or an aware datetime. Only what can't be right in any call is
        refused here; the meter judges the rest, and keeps what it can't bill.

        A push that may not have arrived is repeated by itself, with back-off, so the same event may stand in the stream twice.
        That is harmless: (org_id, call_id) is billed once.

        Raises InvalidField; QueueFull, Unreachable or Refused once it gives up: then keep the event.
        """
        return self._append([encode_event(event)], 0)[0]

    def push_many(self, events: Iterable[Mapping[str, object]]) -> list[str]:
        """Push completed calls, as push() does, many at once; gives their stream ids, in order.

        Raises what push() raises, and what `events` raises. The error's `pushed` says how many events, counted from the first,
        were surely pushed; of the others some may have been. Go on from there, or push all again: a call is billed once.
        """
        stream_ids: list[str] = []
        payloads: list[bytes] = []
        for event in events:
            try:
                payloads.append(encode_event(event))
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
        key = f"{GATE_PREFIX}{check_id('org_id', org_id)}"
        try:
            try:
                found = self._read_gate(key)
            except redis.RedisError as error:
                if not tells_to_leave(error):
                    raise
                leave_if_told(self._client, error)
                found = self._read_gate(key)
        except redis.RedisError as error:
            leave_if_told(self._client, error)
            raise failure_of(
                error,
                f"the gate of org {org_id} can't be asked: whether its calls may start is yours to decide",
            ) from error
        state, balance_cents, version = found
        return Gate(
            org_id,
            None if state is None else as_text(state),
            whole_number(balance_cents),
            whole_number(version),
        )

    def start_call(self, org_id: int, call_id: int, *, cents: int, ttl_seconds: int) -> HeldCall:
        """Hold `cents` for a call that is to start, for `ttl_seconds`: the most that it may cost, for as long as it may last.

        Let it start only if that is `granted`. To start a call again changes nothing, so it is repeated by itself like push(),
        also at a new primary.

        Raises InvalidField; Unreachable or Refused once it gives up: then it isn't known whether it is held, and whether the call
        starts is yours to decide, as with gate(). What is held lapses by itself.
        """
        return self._hold("call_start", org_id, call_id, cents, ttl_seconds)

    def renew_call(self, org_id: int, call_id: int, *, cents: int, ttl_seconds: int) -> HeldCall:
        """Hold `cents` in all for a call that runs, for `ttl_seconds` from now; not `granted`, its hold stays as it was.

        Raises what start_call() raises.
        """
        return self._hold("call_renew", org_id, call_id, cents, ttl_seconds)

    def cancel_call(self, org_id: int, call_id: int) -> HeldCall:
        """Hold nothing more for a call that will never have an event; one that has is ended by its event, also of 0 seconds.

        Raises what start_call() raises.
        """
        return self._hold("call_cancel", org_id, call_id)

    def _hold(
        self,
        function: str,
        org_id: int,
        call_id: int,
        cents: int | None = None,
        ttl_seconds: int | None = None,
    ) -> HeldCall:
        key = f"{HOLDS_PREFIX}{check_id('org_id', org_id)}"
        words: list[str] = [key, f"{key}{HOLD_ENDS_SUFFIX}", str(check_id("call_id", call_id))]
        if cents is not None or ttl_seconds is not None:
            words.append(str(check_amount("cents", cents, 0, MAX_CENTS)))
            words.append(str(check_amount("ttl_seconds", ttl_seconds, 1, MAX_TTL_SECONDS)))
        waits = itertools.islice(backoff_s(), self._tries - 1)
        while True:
            try:
                return read_answer(org_id, call_id, self._client.fcall(function, 2, *words))
            except redis.RedisError as error:
                leave_if_told(self._client, error)
                failure = hold_failure_of(error, org_id, call_id)
                wait_s = next(waits, None) if isinstance(failure, Unreachable) else None
                if wait_s is None:
                    raise failure from error
                time.sleep(wait_s)

    def signals(self, since: str | None = None) -> Signals:
        """Hear every signal after `since`, the id of the last one seen; without it, from this call on (not from the first next).

        To keep the states of gates: signals() first, then gate() of each org, then the signals, ignoring those whose version
        isn't above the one held. So none falls between. Signals are kept in a log of the last 100,000 or so.

        Raises ValueError for a `since` that is no id. Without `since`, Redis is asked at once: raises Unreachable or Refused.
        """
        if since is not None and not ENTRY_ID.fullmatch(since):
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
        check_role(about)
        return found

    def _append(self, payloads: Sequence[bytes], pushed_before: int) -> list[str]:
        """Append all of `payloads`; repeat from the first that isn't surely in, as long as that may help."""
        stream_ids: list[str] = []
        waits = itertools.islice(backoff_s(), self._tries - 1)
        while len(stream_ids) < len(payloads):
            error = self._try_to_append(payloads[len(stream_ids) :], stream_ids)
            if error is None:
                continue
            leave_if_told(self._client, error)
            failure = failure_of(
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
                if self._replicas:
                    pipeline.wait(self._replicas, self._wait_ms)
                answers = pipeline.execute(raise_on_error=False)
        except redis.RedisError as error:
            return error
        if self._replicas:
            have_it = answers.pop()
            if isinstance(have_it, Exception):
                return have_it
            if have_it < self._replicas:
                return redis.TimeoutError(f"{have_it} of {self._replicas} replicas have it")
        for answer in answers:
            if isinstance(answer, Exception):
                return answer
            stream_ids.append(as_text(answer))
        return None
