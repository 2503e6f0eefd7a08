"""Saving a card, and making it the one that is charged."""

from functools import partial
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import Field

from metering.api.auth import OrgId, known_org
from metering.api.bodies import Body, describes, json_body, no_body
from metering.api.context import context_of
from metering.api.parameters import plain_query
from metering.api.responses import (
    ACCOUNT,
    BODY_REFUSED,
    CARD_DECLINED,
    FAILED,
    INVALID_PAYMENT_METHOD,
    PROVIDER_UNAVAILABLE,
    UNAUTHENTICATED,
    Answer,
    BillingAccountAnswer,
    account_answer,
    answer,
    answers,
    invalid_request,
)
from metering.payments.cards import create_setup_intent, set_default_payment_method

router = APIRouter(prefix="/v1/billing", tags=["Cards"])

PaymentMethodId = Annotated[
    str,
    Field(
        min_length=1,
        max_length=255,
        pattern="^[A-Za-z0-9_-]+$",
        description="Stripe's id of a payment method.",
    ),
]


class SetupIntentAnswer(Answer):
    """A SetupIntent, to be confirmed with Stripe.js."""

    setup_intent_id: str
    client_secret: str


class DefaultPaymentMethod(Body):
    """The payment method that is to be charged."""

    payment_method_id: PaymentMethodId


@router.post(
    "/setup-intent",
    summary="Begin saving a card",
    dependencies=[plain_query(known_org), Depends(no_body)],
    responses=answers(
        answer(
            HTTPStatus.OK,
            SetupIntentAnswer,
            {"setup_intent_id": "seti_abc123", "client_secret": "seti_abc123_secret_..."},
            "Confirm it with Stripe.js; then make the payment method the default.",
        ),
        invalid_request("name", "is not a known field"),
        UNAUTHENTICATED,
        BODY_REFUSED,
        CARD_DECLINED,
        PROVIDER_UNAVAILABLE,
        FAILED,
    ),
)
async def post_setup_intent(request: Request, org_id: OrgId) -> SetupIntentAnswer:
    """Makes a SetupIntent; takes no body."""
    context = context_of(request)
    made = await context.thread_pools.provider.run_for(
        org_id, partial(create_setup_intent, context.payments, org_id)
    )
    return SetupIntentAnswer(setup_intent_id=made.setup_intent_id, client_secret=made.client_secret)


@router.post(
    "/default-payment-method",
    summary="Set the default payment method",
    dependencies=[plain_query(known_org)],
    openapi_extra=describes(DefaultPaymentMethod, {"payment_method_id": "pm_abc123"}),
    responses=answers(
        ACCOUNT,
        invalid_request("payment_method_id", "is required"),
        INVALID_PAYMENT_METHOD,
        UNAUTHENTICATED,
        BODY_REFUSED,
        CARD_DECLINED,
        PROVIDER_UNAVAILABLE,
        FAILED,
    ),
)
async def post_default_payment_method(
    request: Request,
    org_id: OrgId,
    asked: Annotated[DefaultPaymentMethod, Depends(json_body(DefaultPaymentMethod))],
) -> BillingAccountAnswer:
    """It must have been saved with a SetupIntent of this organization."""
    context = context_of(request)
    account = await context.thread_pools.provider.run_for(
        org_id, partial(set_default_payment_method, context.payments, org_id, asked.payment_method_id)
    )
    return account_answer(account, context.payments.clock(), await context.held_money.held_cents(org_id))
