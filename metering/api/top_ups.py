"""`/v1/billing/top-up`: charging a card once, and knowing whether the client was told."""

from functools import partial
from http import HTTPStatus
from typing import Annotated, Any, Final, Literal

import structlog
from fastapi import APIRouter, Depends, Header, Request
from fastapi.responses import JSONResponse
from pydantic import Field
from starlette.types import Receive, Scope, Send

from metering.api.auth import OrgId, known_org
from metering.api.bodies import Body, describes, json_body
from metering.api.cards import PaymentMethodId
from metering.api.context import ApiContext, context_of
from metering.api.errors import InvalidField, InvalidRequestError
from metering.api.parameters import plain_query
from metering.api.responses import (
    BODY_REFUSED,
    CARD_DECLINED,
    FAILED,
    INVALID_PAYMENT_METHOD,
    PAYMENT_METHOD_REQUIRED,
    PROVIDER_UNAVAILABLE,
    UNAUTHENTICATED,
    Answer,
    Problem,
    answer,
    answers,
    documented_error,
    invalid_request,
)
from metering.payments.errors import InvalidAmountError
from metering.payments.outcomes import AuthenticationRequired, CardDeclined, TopUpMade, TopUpOutcome
from metering.payments.top_ups import ToppedUp, mark_told, top_up
from metering.rules.payments import MAX_CHARGE_CENTS

router = APIRouter(prefix="/v1/billing", tags=["Top-ups"])
log: structlog.stdlib.BoundLogger = structlog.get_logger()

IDEMPOTENCY_KEY: Final = "Idempotency-Key"
AMOUNT: Final = "amount_cents"


class TopUp(Body):
    """What to charge."""

    amount_cents: int = Field(
        ge=1,
        le=MAX_CHARGE_CENTS,
        description="USD cents; at least 500 unless the operator has set another minimum.",
    )
    payment_method_id: PaymentMethodId = Field(
        default="", description="One of the organization's payment methods; the default one unless sent."
    )


class TopUpAnswer(Answer):
    """A PaymentIntent."""

    payment_intent_id: str
    status: str = Field(
        description="Stripe's `PaymentIntent.status`: `succeeded`, `requires_action`, ...; never `canceled`."
    )
    client_secret: str | None = Field(description="For Stripe.js, where `status` is `requires_action`.")


class AuthenticationRequiredAnswer(Problem):
    """The bank wants the cardholder to confirm."""

    code: Literal["authentication_required"]
    next_action: Literal["confirm_payment"]
    client_secret: str | None = Field(description="For Stripe.js.")


async def _read_top_up(request: Request, org_id: OrgId) -> TopUp:
    """The body. Whatever is wrong with the amount is an invalid amount (docs/reference/http-api.md#top-ups)."""
    try:
        return await json_body(TopUp)(request, org_id)
    except InvalidRequestError as error:
        for each in error.problems:
            if each.field == AMOUNT:
                raise InvalidAmountError(f"{AMOUNT} {each.message}") from None
        raise


async def _read_key(
    request: Request,
    key: Annotated[
        str | None,
        Header(
            alias=IDEMPOTENCY_KEY,
            min_length=1,
            max_length=255,
            pattern="^[ -~]*$",
            description="Of your own making, one for each top-up: the same key and body are charged once, with the same answer. "
            "Send one always: after no answer at all, nothing else makes a repeat safe.",
            openapi_examples={"key": {"value": "order-1042"}},
        ),
    ] = None,
) -> str | None:
    if len(request.headers.getlist(IDEMPOTENCY_KEY)) > 1:
        raise InvalidRequestError(InvalidField(IDEMPOTENCY_KEY, "must be sent once"))
    return key


@router.post(
    "/top-up",
    status_code=HTTPStatus.CREATED,
    summary="Top up the balance",
    dependencies=[plain_query(known_org)],
    openapi_extra=describes(TopUp, {"amount_cents": 10_000}),
    responses=answers(
        answer(
            HTTPStatus.CREATED,
            TopUpAnswer,
            {
                "payment_intent_id": "pi_abc123",
                "status": "succeeded",
                "client_secret": "pi_abc123_secret_...",
            },
            "Charged and credited, if `status` is `succeeded`.",
        ),
        documented_error(
            HTTPStatus.BAD_REQUEST,
            "invalid_amount",
            "amount_cents must be a whole number of cents from 500 to 99999999",
            "The amount is below the minimum or above the maximum.",
        ),
        invalid_request("payment_method_id", "must be a valid string"),
        INVALID_PAYMENT_METHOD,
        UNAUTHENTICATED,
        CARD_DECLINED,
        answer(
            HTTPStatus.PAYMENT_REQUIRED,
            AuthenticationRequiredAnswer,
            {
                "detail": "Your card was declined. This transaction requires authentication.",
                "code": "authentication_required",
                "next_action": "confirm_payment",
                "client_secret": "pi_abc123_secret_...",
            },
            "The bank wants the cardholder to confirm.",
        ),
        documented_error(
            HTTPStatus.CONFLICT,
            "idempotency_conflict",
            "this Idempotency-Key was used before with another body: use a new key for another top-up",
            "The key was used before with another body.",
        ),
        BODY_REFUSED,
        PAYMENT_METHOD_REQUIRED,
        PROVIDER_UNAVAILABLE,
        FAILED,
    ),
)
async def post_top_up(
    request: Request,
    org_id: OrgId,
    idempotency_key: Annotated[str | None, Depends(_read_key)],
    asked: Annotated[TopUp, Depends(_read_top_up)],
) -> JSONResponse:
    """Charges the card.

    After a 502 or 503 the same request is safe to repeat: it is charged once, with a key or without. **No answer at all** is
    another matter: repeat the request with the same `Idempotency-Key`. Without a key it may be charged twice, because an answer
    that was sent may never have reached you.
    """
    context = context_of(request)
    done = await context.thread_pools.provider.run_for(
        org_id,
        partial(
            top_up,
            context.payments,
            org_id,
            amount_cents=asked.amount_cents,
            payment_method_id=asked.payment_method_id or None,
            idempotency_key=idempotency_key,
        ),
    )
    return _AcknowledgedResponse(request, context, org_id, done)


def _answer(outcome: TopUpOutcome) -> tuple[HTTPStatus, dict[str, Any]]:
    match outcome:
        case TopUpMade():
            return HTTPStatus.CREATED, {
                "payment_intent_id": outcome.payment_intent_id,
                "status": outcome.status,
                "client_secret": outcome.client_secret,
            }
        case CardDeclined():
            return HTTPStatus.PAYMENT_REQUIRED, {
                "detail": f"{outcome.message} ({outcome.decline_code})",
                "code": "card_declined",
            }
        case AuthenticationRequired():
            return HTTPStatus.PAYMENT_REQUIRED, {
                "detail": outcome.message,
                "code": "authentication_required",
                "next_action": "confirm_payment",
                "client_secret": outcome.client_secret,
            }


class _AcknowledgedResponse(JSONResponse):
    """The answer to a top-up; once it is sent, it is noted whether there was a client to hear it.

    Until then an identical request gets this one's outcome, and after a client that has gone too
    (docs/reference/http-api.md#top-ups).
    """

    def __init__(self, request: Request, context: ApiContext, org_id: int, done: ToppedUp) -> None:
        status, body = _answer(done.outcome)
        super().__init__(body, status)
        self._request = request
        self._context = context
        self._org_id = org_id
        self._done = done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        delivered = False
        try:
            connected = not await self._request.is_disconnected()
            await super().__call__(scope, receive, send)
            delivered = connected
        finally:
            await self._note(delivered=delivered)

    async def _note(self, *, delivered: bool) -> None:
        note = partial(mark_told, self._context.prompt_payments, self._org_id, self._done, heard=delivered)
        try:
            # In a pool of its own: whoever waits in the one to Stripe may be waiting for just this, and until it is noted another
            # top-up that looks the same is taken for this one, so it must not wait for whoever only reads.
            await self._context.thread_pools.delivery.run_for(self._org_id, note)
            log.info(
                "a top-up's client has its answer" if delivered else "a top-up's client had gone",
                attempt=str(self._done.attempt_id),
                status=self.status_code,
            )
        except Exception as error:  # noqa: BLE001 - the client has its answer; an identical request gets it once more
            log.warning(
                "a top-up's answer was delivered, and that can't be recorded", error=type(error).__name__
            )
