"""Requests to Stripe: sent in time, counted, timed, and their errors turned into what they mean."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

import stripe
import structlog

from metering.payments.metrics import STRIPE_REQUEST_SECONDS
from metering.payments.stripe_failures import REPLAYED, error_body, failure_of, log_refusal, outcome_of

_LOOKS: Final = (".retrieve", ".list")

log: structlog.stdlib.BoundLogger = structlog.get_logger()

TIMELY: ContextVar[Callable[[], bool]] = ContextVar("timely", default=lambda: True)


class HttpClient(stripe.RequestsClient):
    """Stripe over HTTP. A machine can sleep between a request and its repeat, for longer than Stripe keeps the key."""

    def request(self, *asked: Any, **options: Any) -> Any:
        """One try; as the SDK declares it, which changes."""
        if not TIMELY.get()():
            too_late: Any = stripe.APIConnectionError  # untyped
            raise too_late("not sent: too late for its key", should_retry=False)
        return super().request(*asked, **options)


def ask(operation: str, call: Callable[[], Any], *, answers: list[Any] | None = None) -> dict[str, Any]:
    """Ask Stripe for an object; give it as plain values, or raise what the failure means.

    The SDK's own object, which has the headers, is added to `answers`.
    """
    with _timed(operation) as timing:
        try:
            answer = call()
        except stripe.CardError as error:
            inside = error_body(error).get("payment_intent")
            if not isinstance(inside, dict):
                raise
            timing.outcome = "declined"
            log_refusal(operation, timing.outcome, error)
            return inside
    if answers is not None:
        answers.append(answer)
    found: dict[str, Any] = answer.to_dict()
    _tell(operation, found, getattr(answer, "last_response", None))
    return found


def told_at(answer: Any) -> datetime | None:
    """When Stripe answered, by its own clock. None where something in between has taken that out, or spoilt it."""
    try:
        told = parsedate_to_datetime(answer.last_response.headers["Date"])
    except (KeyError, ValueError, AttributeError):
        return None
    return None if told.tzinfo is None else told.astimezone(UTC)


def is_replayed(answer: Any) -> bool:
    """Whether it is what the idempotency key was answered first, however the object stands by now."""
    return bool(answer.last_response.headers.get(REPLAYED) == "true")


def each_of(
    operation: str, call: Callable[[], Any], times: list[datetime | None] | None = None
) -> Iterator[dict[str, Any]]:
    """Every object of a list, page by page; when Stripe told of each page is added to `times`."""
    while True:
        with _timed(operation):
            page = call()
        if times is not None:
            times.append(told_at(page))
        for each in page.data:
            yield each.to_dict()
        if not page.has_more:
            return
        call = page.next_page


def _tell(operation: str, found: dict[str, Any], response: Any) -> None:
    """With its request id, by which Stripe's dashboard and support find it. What only looks is told below info."""
    say = log.debug if operation.endswith(_LOOKS) else log.info
    say(
        "Stripe answered",
        operation=operation,
        object=found.get("id"),
        status=found.get("status"),
        stripe_request_id=None if response is None else response.request_id,
    )


@dataclass(slots=True)
class _Timing:
    outcome: str = "ok"


@contextmanager
def _timed(operation: str) -> Iterator[_Timing]:
    """Count and time one request, and turn the SDK's errors into what they mean."""
    began_s = time.monotonic()
    timing = _Timing()
    try:
        yield timing
    except stripe.StripeError as error:
        failure = failure_of(operation, error)
        timing.outcome = outcome_of(failure)
        log_refusal(operation, timing.outcome, error)
        # What Stripe says may show a part of a key, and a traceback would show what Stripe says.
        raise failure from (error if error.http_status is None else None)
    finally:
        STRIPE_REQUEST_SECONDS.labels(operation, timing.outcome).observe(time.monotonic() - began_s)
