"""How a request is answered: its key, its faults, its parameters, its work on the state."""

import threading
from collections import Counter, deque
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

import msgspec
import structlog

from metering.sandbox.stripe.accounts import foreign
from metering.sandbox.stripe.api_keys import ApiKeys, refused
from metering.sandbox.stripe.disk import KeptAnswer
from metering.sandbox.stripe.documented import documents_word, undocumented
from metering.sandbox.stripe.endpoints import Endpoint, endpoint_for
from metering.sandbox.stripe.errors import (
    INVALID_REQUEST,
    StripeError,
    UnknownParameterError,
    UnknownWordError,
    UnsupportedError,
    ValidationError,
    unexpected,
)
from metering.sandbox.stripe.expansion import expanded
from metering.sandbox.stripe.faults import Fault, Faults, RequestFault, card_error, refusal
from metering.sandbox.stripe.forms import decode_form
from metering.sandbox.stripe.idempotency import Keys, fingerprint
from metering.sandbox.stripe.store import Origin, Store, StoreClosedError, Work
from metering.sandbox.stripe.values import API_VERSION, Json, new_id, shown

FORM: Final = "application/x-www-form-urlencoded"
REMEMBERED: Final = 10_000

log: structlog.stdlib.BoundLogger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it came. Names of headers are in lower case."""

    verb: str
    path: str
    query: str
    body: str
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RequestMade:
    """A request that came for an operation, as the sandbox remembers it."""

    operation: str
    ids: tuple[str, ...]
    """The ids in its address."""
    params: Json
    """As they were sent: all values are strings."""
    idempotency_key: str | None
    request_id: str


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request that was understood."""

    request_id: str
    endpoint: Endpoint
    ids: tuple[str, ...]
    raw: Json
    key: str | None
    fault: Fault[RequestFault] | None
    account: str
    """The account that it is asked for."""
    kept_as: str
    """The key as it is kept: another account's is another key."""

    def meets(self, *kinds: RequestFault) -> bool:
        return self.fault is not None and self.fault.kind in kinds


LOST_AFTER_S: Final = 3_600


class Answering:
    """Answers requests to the API."""

    def __init__(
        self, store: Store, api_keys: ApiKeys, faults: Faults[RequestFault], stopping: threading.Event
    ) -> None:
        self._store = store
        self._keys = Keys(store)
        self._api_keys = api_keys
        self._faults = faults
        self._stopping = stopping
        self._counting = threading.Lock()
        self.made: deque[RequestMade] = deque(maxlen=REMEMBERED)
        """The latest requests, the newest last."""
        self.latency_s = 0.0
        """How long every request takes at least."""
        self.asked: Counter[str] = Counter()
        """How many requests there were, by operation."""
        self.executed: Counter[str] = Counter()
        """How many of them were executed: neither refused nor answered by what a key keeps."""

    def answer(self, request: Request) -> Answer | None:
        """The answer; None to end the connection without one, as also when the sandbox is stopped meanwhile."""
        request_id = new_id("req", 14)
        came_at = self._store.now()
        try:
            if self.latency_s:
                self._wait(self.latency_s)
            if self._store.now() - came_at >= LOST_AFTER_S:
                return None  # the clock was set forward meanwhile: no request is under way for so long
            answer = self._answer(request, request_id)
        except StoreClosedError:
            return None
        except StripeError as error:
            answer = _error(error, request_id)
        except Exception:
            log.exception("the Stripe sandbox failed", request=f"{request.verb} {request.path}")
            answer = _error(unexpected(request_id), request_id)
        if answer is not None:
            answer.headers["Request-Id"] = request_id
            answer.headers["Stripe-Version"] = API_VERSION
            if "idempotency-key" in request.headers:
                answer.headers["Idempotency-Key"] = request.headers["idempotency-key"]
        return answer

    def _answer(self, request: Request, request_id: str) -> Answer | None:
        api_key, owner = self._api_keys.require(request.headers.get("authorization"))
        account = owner or self._store.first_account
        acts_for = request.headers.get("stripe-account", account)
        if acts_for != account:
            raise foreign(acts_for)
        version = request.headers.get("stripe-version", API_VERSION)
        if version != API_VERSION:
            raise StripeError(
                400,
                INVALID_REQUEST,
                f"Invalid Stripe API version: {version}. (This is the sandbox, not Stripe: it knows {API_VERSION} only.)",
            )
        matched = endpoint_for(request.verb, request.path)
        if matched is None:
            raise StripeError(
                404,
                INVALID_REQUEST,
                f"Unrecognized request URL ({request.verb}: {request.path}). (This is the sandbox, not Stripe: it knows less.)",
            )
        endpoint, ids = matched
        fault = self._faults.meet(endpoint.operation, self._store.now())
        key = request.headers.get("idempotency-key") if request.verb == "POST" else None
        params = _raw_params(request)
        with self._counting:
            self.asked[endpoint.operation] += 1
            self.made.append(RequestMade(endpoint.operation, ids, params, key, request_id))
        if fault is not None:
            if fault.kind is RequestFault.UNAUTHORIZED:
                raise refused(api_key)
            if fault.kind is RequestFault.ERROR_BEFORE:
                raise unexpected(request_id)
            if fault.kind is RequestFault.DROP_BEFORE:
                return None
            refusing = refusal(fault.kind, key)
            if refusing is not None:
                raise refusing
        asked = _Asked(
            request_id, endpoint, ids, params, key, fault, account, f"{owner} {key}" if owner else key or ""
        )
        answer = self._with_key(asked, request.path)
        if asked.meets(RequestFault.HANG_AFTER) and fault is not None:
            self._wait(fault.seconds)
        return None if asked.meets(RequestFault.DROP_AFTER) else answer

    def _wait(self, seconds: float) -> None:
        """Wait; raises StoreClosedError when the sandbox is stopped meanwhile: nothing is executed any more."""
        if self._stopping.wait(seconds):
            raise StoreClosedError

    def _with_key(self, asked: _Asked, path: str) -> Answer:
        """Execute, unless the key keeps an answer."""
        if asked.key is None:
            return self._execute(asked, b"")
        about = fingerprint(path, asked.raw)
        kept = self._keys.begin(asked.key, about, asked.kept_as)
        if kept is not None:
            headers = {"Idempotent-Replayed": "true", "Original-Request": kept.request_id}
            return Answer(kept.status, kept.body, _final(kept.status) | headers)
        try:
            return self._execute(asked, about)
        finally:
            self._keys.end(asked.kept_as)

    def _execute(self, asked: _Asked, about: bytes) -> Answer:
        if asked.meets(RequestFault.HANG_BEFORE) and asked.fault is not None:
            self._wait(asked.fault.seconds)
        params = _params(asked.endpoint, asked.raw)
        with self._counting:
            self.executed[asked.endpoint.operation] += 1
        with self._store.work(Origin(asked.request_id, asked.key), asked.account) as work:
            answer = self._work(work, asked, params)
            if asked.key is not None:
                work.answer = KeptAnswer(
                    asked.kept_as, about, work.now, answer.status, answer.body, asked.request_id
                )
        return answer

    def _work(self, work: Work, asked: _Asked, params: Json) -> Answer:
        if asked.meets(RequestFault.ERROR_STORED):
            return _kept_error(asked)
        if asked.meets(RequestFault.CARD_ERROR):
            return _error(card_error(), asked.request_id)
        try:
            result = shown(asked.endpoint.answer(work, params, *asked.ids))
            answer = Answer(200, msgspec.json.encode(expanded(work, result, params.get("expand", ()))))
        except StripeError as error:
            if not error.keeps_changes:
                work.drop_changes()
            answer = _error(error, asked.request_id)
        except Exception:
            log.exception("the Stripe sandbox failed", operation=asked.endpoint.operation)
            work.drop_changes()
            answer = _error(unexpected(asked.request_id), asked.request_id)
        return _kept_error(asked) if asked.meets(RequestFault.ERROR_AFTER) else answer


def _params(endpoint: Endpoint, raw: Json) -> Json:
    """The parameters in their own types. Raises ValidationError, another one for what only the sandbox doesn't take."""
    try:
        return endpoint.params.read(raw, "")
    except UnknownParameterError as error:
        unknown = undocumented(endpoint.operation, raw)
        if unknown is not None:
            raise UnknownParameterError(unknown) from None
        raise UnsupportedError(f"the parameter `{error.param}`", error.param) from None
    except UnknownWordError as error:
        if not documents_word(endpoint.operation, error.param, error.word):
            raise
        raise UnsupportedError(f"`{error.word}` as `{error.param}`", error.param) from None


def _raw_params(request: Request) -> Json:
    if request.verb != "POST":
        return decode_form(request.query)
    content_type = request.headers.get("content-type", FORM).partition(";")[0].strip().lower()
    if request.body and content_type != FORM:
        raise ValidationError(f"Invalid request (check that your POST content type is {FORM}).")
    return decode_form(request.body)


def _error(error: StripeError, request_id: str) -> Answer:
    return Answer(error.status, msgspec.json.encode(error.body(request_id)))


def _kept_error(asked: _Asked) -> Answer:
    error = unexpected(asked.request_id)
    return Answer(error.status, msgspec.json.encode(error.body(asked.request_id)), _final(error.status))


def _final(status: int) -> dict[str, str]:
    """Stripe tells its SDKs not to repeat a failure that the key would only replay."""
    return {"Stripe-Should-Retry": "false"} if status >= HTTPStatus.INTERNAL_SERVER_ERROR else {}
