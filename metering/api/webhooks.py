"""`/v1/stripe/webhook`: what Stripe tells by itself."""

from functools import partial
from http import HTTPStatus
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Header, Request

from metering.api.bodies import read_body
from metering.api.context import context_of
from metering.api.errors import UnavailableError
from metering.api.responses import BODY_REFUSED, FAILED, Answer, answer, answers, documented_error
from metering.payments.errors import ProviderUnavailableError
from metering.payments.webhooks import receive
from metering.runtime.crashpoints import CrashPoint, reach

router = APIRouter(prefix="/v1/stripe", tags=["Stripe"])

MAX_EVENT_BYTES: Final = 1_048_576


class ReceivedAnswer(Answer):
    """The event need not be sent again."""

    received: Literal[True] = True


@router.post(
    "/webhook",
    summary="Receive a webhook of Stripe's",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"type": "object"}, "example": {"id": "evt_1"}}},
        }
    },
    responses=answers(
        answer(HTTPStatus.OK, ReceivedAnswer, {"received": True}, "Seen to, also where nothing came of it."),
        documented_error(
            HTTPStatus.BAD_REQUEST,
            "invalid_signature",
            "the signature is not made with our webhook secret",
            "Not signed by Stripe, or not lately.",
        ),
        BODY_REFUSED,
        FAILED,
    ),
)
async def post_webhook(
    request: Request,
    signature: Annotated[
        str | None, Header(alias="Stripe-Signature", description="Stripe's, of the raw body.")
    ] = None,
) -> ReceivedAnswer:
    """For Stripe alone. Whatever can't be seen to now is answered 503, so that Stripe sends it again."""
    context = context_of(request)
    body = await read_body(request, limit_bytes=MAX_EVENT_BYTES)
    try:
        await context.thread_pools.webhook.run(
            partial(receive, context.payments, body, signature, context.webhook_secrets)
        )
    except ProviderUnavailableError as error:
        raise UnavailableError from error
    reach(CrashPoint.WEBHOOK_BEFORE_ANSWER)
    return ReceivedAnswer()
