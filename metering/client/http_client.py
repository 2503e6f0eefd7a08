"""The client over HTTP: the same methods, for a program that the operator doesn't let near Redis."""

import itertools
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from metering.client.backoff import backoff_s
from metering.client.closing import ClosedByWith
from metering.client.errors import InvalidField, QueueFull, Refused, TelephonyError, Unreachable
from metering.client.event_encoding import check_id, encode_event
from metering.client.gate import Gate

if TYPE_CHECKING:
    import httpx

MAX_EVENTS: Final = 1_000
MAX_BODY_BYTES: Final = 1_048_576
"""What the server takes in one request (docs/reference/call-events.md#over-http)."""

_PUSH_PATH: Final = "/v1/calls/completed"
_BEGIN, _END = b'{"events":[', b"]}"
_PASSES: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
"""What an answer may say that is different a moment later: the server's, or that of a proxy before it."""


class HttpClient(ClosedByWith):
    """Telephony's side of the metering, over HTTP. Threads may share it; it connects when it is first used.

    It has the methods of MeteringClient but signals(), which HTTP can't carry, and its errors.
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
