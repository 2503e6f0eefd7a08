"""`/v1/billing`: the account, and its settings for automatic reloads."""

from functools import partial
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Depends, Request
from pydantic import Field

from db.accounts.billing import read_account
from metering.api.auth import OrgId, known_org
from metering.api.bodies import Body, describes, json_body
from metering.api.context import context_of
from metering.api.errors import UnauthenticatedError
from metering.api.parameters import plain_query
from metering.api.responses import (
    ACCOUNT,
    BODY_REFUSED,
    FAILED,
    MAX_INT,
    PAYMENT_METHOD_REQUIRED,
    UNAUTHENTICATED,
    BillingAccountAnswer,
    account_answer,
    answers,
    invalid_request,
)
from metering.payments.accounts import SettingsPatch, change_settings
from metering.rules.payments import MAX_CHARGE_CENTS, MIN_CHARGE_CENTS

router = APIRouter(prefix="/v1/billing", tags=["Billing account"])


class ReloadSettings(Body):
    """Settings to change; what isn't sent stays as it is."""

    auto_reload_enabled: bool = Field(
        default=False, description="Turning it on needs a default payment method."
    )
    auto_reload_minimum_cents: int = Field(
        default=0,
        ge=0,
        le=MAX_INT,
        description="A reload is made once the balance is below. Needed to turn it on.",
    )
    auto_reload_amount_cents: int = Field(
        default=MIN_CHARGE_CENTS,
        ge=MIN_CHARGE_CENTS,
        le=MAX_CHARGE_CENTS,
        description="What a reload charges. Needed to turn it on.",
    )
    auto_reload_monthly_limit_cents: int | None = Field(
        default=None,
        ge=0,
        le=MAX_INT,
        description="What reloads may charge in a UTC calendar month; null is no limit.",
    )

    def patch(self) -> SettingsPatch:
        """What was sent."""
        return msgspec.convert({name: getattr(self, name) for name in self.model_fields_set}, SettingsPatch)


EXAMPLE: Final[dict[str, Any]] = {
    "auto_reload_enabled": True,
    "auto_reload_minimum_cents": 1_000,
    "auto_reload_amount_cents": 5_000,
    "auto_reload_monthly_limit_cents": 50_000,
}


@router.get(
    "",
    summary="Get the billing account",
    dependencies=[plain_query(known_org)],
    responses=answers(
        ACCOUNT,
        invalid_request("limit", "is not a known parameter: this takes none"),
        UNAUTHENTICATED,
        FAILED,
    ),
)
async def get_billing_account(request: Request, org_id: OrgId) -> BillingAccountAnswer:
    """Balance, settings, and whether there is a card."""
    context = context_of(request)
    account = await context.thread_pools.account.run_for(
        org_id, partial(read_account, context.engine, org_id)
    )
    if account is None:
        raise UnauthenticatedError
    return account_answer(account, context.payments.clock(), await context.held_money.held_cents(org_id))


@router.patch(
    "",
    summary="Change automatic reloads",
    dependencies=[plain_query(known_org)],
    openapi_extra=describes(ReloadSettings, EXAMPLE),
    responses=answers(
        ACCOUNT,
        invalid_request("auto_reload_minimum_cents", "is required when enabling auto-reload"),
        UNAUTHENTICATED,
        BODY_REFUSED,
        PAYMENT_METHOD_REQUIRED,
        FAILED,
    ),
)
async def patch_billing_account(
    request: Request, org_id: OrgId, asked: Annotated[ReloadSettings, Depends(json_body(ReloadSettings))]
) -> BillingAccountAnswer:
    """All that is sent is changed, or nothing."""
    context = context_of(request)
    account = await context.thread_pools.account.run_for(
        org_id, partial(change_settings, context.prompt_payments, org_id, asked.patch())
    )
    return account_answer(account, context.payments.clock(), await context.held_money.held_cents(org_id))
