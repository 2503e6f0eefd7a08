"""The client over HTTP: the same methods, for a program that the operator doesn't let near Redis."""

import itertools
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from metering.client.backoff import backoff_s
from metering.client.closing import ClosedByWith
from metering.client.errors import InvalidField, QueueFull, Refused, TelephonyError, Unreachable
from metering.client.event_encoding import check_id, encode_event
from metering.client.gate import Gate
from metering.client.priced_hold import PricedHold

if TYPE_CHECKING:
    import httpx

MAX_EVENTS: Final = 1_000
MAX_BODY_BYTES: Final = 1_048_576
"""What the server takes in one request (docs/reference/call-events.md#over-http)."""

_PUSH_PATH: Final = "/v1/calls/completed"
_CALLS_PATH: Final = "/v1/calls"
_HELD: Final = (HTTPStatus.OK, HTTPStatus.CREATED)
_NOT_HELD: Final = (
    HTTPStatus.PAYMENT_REQUIRED,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.NOT_FOUND,
    HTTPStatus.CONFLICT,
    HTTPStatus.TOO_MANY_REQUESTS,
)
_BEGIN, _END = b'{"events":[', b"]}"
_PASSES: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
"""What an answer may say that is different a moment later: the server's, or that of a proxy before it."""


class HttpClient(ClosedByWith):
    """Telephony's side of the metering, over HTTP. Threads may share it; it connects when it is first used.

    It has the methods of MeteringClient but signals(), which HTTP can't carry, and its errors. Holds are priced by the server.
    """

    def __init__(
        self, server: "str | httpx.Client", token: str, *, timeout_s: float = 2.0, tries: int = 3
    ) -> None:
        """Use the API at `server`, its address such as `https://meter.internal`, with telephony's token.

        `timeout_s` limits connecting, and each wait for the answer. A push is tried `tries` times. A httpx.Client is used as it
        is (proxies, certificates, a time-out of its own, a base_url), and not closed.

        Raises ImportError where httpx isn't installed: it comes with `metering[http]`. Raises ValueError for what is no address.
        """
        if timeout_s <= 0 or tries < 1:
            raise ValueError("timeout_s must be above 0 and tries at least 1")
        if not token.isascii() or not token.isprintable() or not token.strip():
            raise ValueError("token must be telephony's token: METERING_TELEPHONY_TOKEN of the server")
        try:
            import httpx  # noqa: PLC0415 - whoever speaks Redis does without it
        except ImportError as error:
            raise ImportError("HttpClient needs httpx: pip install 'metering[http]'") from error
        self._own = isinstance(server, str)
        if isinstance(server, str):
            address = httpx.URL(server)
            if address.scheme not in {"http", "https"} or not address.host:
                raise ValueError(f"server must be an address such as https://meter.internal, not {server!r}")
            self._client = httpx.Client(base_url=address, timeout=timeout_s)
        else:
            self._client = server
        self._failed = httpx.HTTPError
        self._headers = {"Authorization": f"Bearer {token}"}
        self._tries = tries

    def close(self) -> None:
        """Close the connections."""
        if self._own:
            self._client.close()

    def push(self, event: Mapping[str, object]) -> str:
        """Push one completed call, as MeteringClient.push() does; gives its stream id.

        Raises InvalidField; QueueFull, Unreachable or Refused once it gives up: then keep the event.
        """
        return self._send([encode_event(event)], 0)[0]

    def push_many(self, events: Iterable[Mapping[str, object]]) -> list[str]:
        """Push completed calls, as MeteringClient.push_many() does; gives their stream ids, in order.

        Raises what push() raises, and what `events` raises. The error's `pushed` says how many events, counted from the first,
        were surely pushed; of the others some may have been. Go on from there, or push all again: a call is billed once.
        """
        stream_ids: list[str] = []
        payloads: list[bytes] = []
        size_bytes = 0
        for event in events:
            try:
                payload = encode_event(event)
            except InvalidField as invalid:
                stream_ids += self._send(payloads, len(stream_ids))
                invalid.pushed = len(stream_ids)
                raise
            if len(payloads) == MAX_EVENTS or size_bytes + len(payload) + 1 > MAX_BODY_BYTES - len(
                _BEGIN + _END
            ):
                stream_ids += self._send(payloads, len(stream_ids))
                payloads, size_bytes = [], 0
            payloads.append(payload)
            size_bytes += len(payload) + 1
        return stream_ids + self._send(payloads, len(stream_ids))

    def gate(self, org_id: int) -> Gate:
        """Ask, in one request, whether calls of `org_id` may start; `version` is always None, and the balance of a shut gate too.

        Raises Unreachable or Refused when the gate can't be asked, as MeteringClient.gate() does: there is no default.
        """
        meanwhile = f"the gate of org {org_id} can't be asked: whether its calls may start is yours to decide"
        path = f"/v1/gate/{check_id('org_id', org_id)}"
        try:
            answer = self._client.get(path, headers=self._headers)
        except self._failed as error:
            raise Unreachable(f"the API is away or too slow; {meanwhile} ({_said(error)}).") from error
        match answer.status_code, _body(answer):
            case HTTPStatus.OK, {"allowed": True, "balance_cents": int(balance_cents)}:
                return Gate(org_id, "open", balance_cents, None)
            case HTTPStatus.PAYMENT_REQUIRED, {"code": "balance_exhausted"}:
                return Gate(org_id, "exhausted", None, None)
            case HTTPStatus.FORBIDDEN, {"code": "org_suspended"}:
                return Gate(org_id, "suspended", None, None)
            case HTTPStatus.NOT_FOUND, {"code": "not_found"}:
                return Gate(org_id, None, None, None)
        raise _failure(answer, meanwhile, 0)

    def start_call(self, org_id: int, call_id: int, *, tier: str, direction: str, seconds: int) -> PricedHold:
        """Hold what a call of `seconds` may cost, before it starts; `call_id` is the one that its event will have.

        A repeat gets the first answer, so it is repeated by itself as a push is. Raises InvalidField for an id that is none;
        Unreachable or Refused when there is no answer: then whether the call starts is yours to decide.
        """
        body = {"call_id": check_id("call_id", call_id), "org_id": check_id("org_id", org_id)}
        asked = body | {"tier": tier, "direction": direction, "seconds": seconds}
        return self._hold("POST", _CALLS_PATH, org_id, call_id, asked)

    def renew_call(
        self,
        org_id: int,
        call_id: int,
        *,
        tier: str,
        direction: str,
        started_at: datetime | str,
        seconds: int,
    ) -> PricedHold:
        """Hold what a call that runs may cost if it lasts for `seconds` in all since `started_at`, aware or text with an offset.

        Raises what start_call() raises; without an answer the call may last as long as it was told before.
        """
        started = started_at if isinstance(started_at, str) else started_at.isoformat()
        asked = {
            "org_id": check_id("org_id", org_id),
            "tier": tier,
            "direction": direction,
            "started_at": started,
            "seconds": seconds,
        }
        path = f"{_CALLS_PATH}/{check_id('call_id', call_id)}/renew"
        return self._hold("POST", path, org_id, call_id, asked)

    def cancel_call(self, org_id: int, call_id: int) -> None:
        """Hold nothing for a call that will never have an event, because it never started. Raises what start_call() raises."""
        path = f"{_CALLS_PATH}/{check_id('call_id', call_id)}?org_id={check_id('org_id', org_id)}"
        self._ask("DELETE", path, "the hold stays until it lapses", HTTPStatus.OK)

    def _hold(self, method: str, path: str, org_id: int, call_id: int, asked: dict[str, Any]) -> PricedHold:
        meanwhile = f"it isn't known whether call {call_id} is held: whether it runs is yours to decide"
        said = self._ask(method, path, meanwhile, *_HELD, *_NOT_HELD, json=asked)
        body = _body(said)
        if said.status_code in _HELD:
            return PricedHold(
                org_id,
                call_id,
                True,
                max_duration_seconds=body["max_duration_seconds"],
                held_cents=body["held_cents"],
                available_cents=body["available_cents"],
                expires_at=datetime.fromisoformat(body["expires_at"]),
                final=body.get("final"),
            )
        return PricedHold(org_id, call_id, False, code=str(body["code"]))

    def _ask(
        self, method: str, path: str, meanwhile: str, *expected: int, **request: Any
    ) -> "httpx.Response":
        """Ask, and once more as long as that may help; gives an answer that is the API's own, with an `expected` status."""
        waits = itertools.islice(backoff_s(), self._tries - 1)
        while True:
            cause: Exception | None = None
            try:
                answer = self._client.request(method, path, headers=self._headers, **request)
            except self._failed as error:
                cause = error
                failure: TelephonyError = Unreachable(
                    f"the API is away or too slow; {meanwhile} ({_said(error)})."
                )
            else:
                code = _body(answer).get("code")
                # What telephony is to wait for has a status that answers too; and a proxy's own page has no code.
                is_answer = answer.is_success or code not in {None, "rate_limited"}
                if answer.status_code in expected and is_answer:
                    return answer
                failure = _failure(answer, meanwhile, 0)
            wait_s = next(waits, None) if isinstance(failure, Unreachable) else None
            if wait_s is None:
                raise failure from cause
            time.sleep(wait_s)

    def _send(self, payloads: Sequence[bytes], pushed_before: int) -> list[str]:
        """Send all of `payloads` in one request, and all of them again as long as that may help.

        Those that came through before stand in the stream twice then. Ids are told only of a whole request.
        """
        if not payloads:
            return []
        waits = itertools.islice(backoff_s(), self._tries - 1)
        while True:
            cause: Exception | None = None
            try:
                answer = self._client.post(
                    _PUSH_PATH,
                    content=_BEGIN + b",".join(payloads) + _END,
                    headers=self._headers | {"Content-Type": "application/json"},
                )
            except self._failed as error:
                cause = error
                failure: TelephonyError = Unreachable(
                    "the API is away or too slow; it isn't known whether it arrived, so push it again: a call is billed once"
                    f" ({_said(error)}).{_surely(pushed_before)}",
                    pushed=pushed_before,
                )
            else:
                body = _body(answer)
                results = body.get("results")
                if answer.status_code == HTTPStatus.ACCEPTED and isinstance(results, list):
                    return [str(each["stream_id"]) for each in results]
                taken = body.get("accepted")
                surely = pushed_before + (taken if isinstance(taken, int) else 0)
                failure = _failure(
                    answer,
                    "it isn't known whether all arrived, so push them again: a call is billed once",
                    surely,
                )
            wait_s = next(waits, None) if isinstance(failure, Unreachable) else None
            if wait_s is None:
                raise failure from cause
            time.sleep(wait_s)


def _failure(answer: "httpx.Response", meanwhile: str, pushed: int) -> TelephonyError:
    """What an answer that isn't the one hoped for means to a telephony program."""
    body = _body(answer)
    said = f"{answer.status_code} {body.get('code', '')}: {body.get('detail', answer.reason_phrase)}"
    if body.get("code") == "queue_full":
        return QueueFull(
            f"Redis is out of memory and takes no events: keep the event and push it when there is room ({said})."
            f"{_surely(pushed)}",
            pushed=pushed,
        )
    if answer.status_code in _PASSES:
        return Unreachable(f"the API can't do it now; {meanwhile} ({said}).{_surely(pushed)}", pushed=pushed)
    return Refused(f"the API refuses, and waiting won't help ({said}).{_surely(pushed)}", pushed=pushed)


def _surely(pushed: int) -> str:
    return f" The first {pushed} were surely pushed." if pushed else ""


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


def _body(answer: "httpx.Response") -> dict[str, Any]:
    """An answer's JSON object; {} where it is none, such as a proxy's page."""
    try:
        body = json.loads(answer.content)
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}
