"""`/v1/gate/{org_id}`: whether a new call may start, and how long it may last.

See docs/reference/gate.md and docs/reference/http-api.md.
"""

from functools import partial
from http import HTTPStatus
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import JSONResponse
from pydantic import Field

from db.ledger.balances import read_balances
from db.ledger.monthly_usage import read_usage_now
from db.postgres.failures import Failure, diagnose
from metering.api.auth import OrgIdOrTelephony, known_org_or_telephony
from metering.api.context import ApiContext, context_of
from metering.api.errors import InvalidField, InvalidRequestError, NotFoundError, error_response
from metering.api.parameters import plain_query, whole_number
from metering.api.responses import (
    FAILED,
    MAX_INT,
    UNAUTHENTICATED,
    Answer,
    Problem,
    answer,
    answers,
    documented_error,
    invalid_request,
)
from metering.rules.durations import longest_duration_s
from metering.rules.gates import GateState
from metering.rules.pricing import Price

router = APIRouter(prefix="/v1/gate", tags=["Gate"])

Direction = Literal["inbound", "outbound"]
EXHAUSTED: Final = "the balance is used up: top up before the next call"
SUSPENDED: Final = "the organization is suspended: ask whoever runs this service"


class GateAnswer(Answer):
    """A new call may start."""

    allowed: Literal[True]
    balance_cents: int
    max_duration_seconds: int | None = Field(
        description="The longest call that the balance covers at the org's price for the tier, at least one first increment;"
        " null without a tier."
    )


class ClosedGateAnswer(Problem):
    """No new call may start."""

    code: Literal["balance_exhausted"]
    allowed: Literal[False]


class SuspendedGateAnswer(Problem):
    """No new call may start, whatever the balance."""

    code: Literal["org_suspended"]
    allowed: Literal[False]


@router.get(
    "/{org_id}",
    summary="Ask whether a call may start",
    dependencies=[plain_query(known_org_or_telephony)],
    responses=answers(
        answer(
            HTTPStatus.OK,
            GateAnswer,
            {"allowed": True, "balance_cents": 1_000, "max_duration_seconds": 7_500},
            "It may.",
        ),
        answer(
            HTTPStatus.PAYMENT_REQUIRED,
            ClosedGateAnswer,
            {"detail": EXHAUSTED, "code": "balance_exhausted", "allowed": False},
            "It may not: the balance is used up.",
        ),
        answer(
            HTTPStatus.FORBIDDEN,
            SuspendedGateAnswer,
            {"detail": SUSPENDED, "code": "org_suspended", "allowed": False},
            "It may not: an operator has suspended the organization, whatever its balance.",
        ),
        invalid_request("tier", "is not a known tier"),
        UNAUTHENTICATED,
        documented_error(HTTPStatus.NOT_FOUND, "not_found", "there is no such org", "Not an org of yours."),
        FAILED,
    ),
)
async def get_gate(
    request: Request,
    caller: OrgIdOrTelephony,
    org_id: Annotated[int, Path(ge=1, le=MAX_INT), whole_number],
    direction: Annotated[Direction | None, Query(description="The same rule counts for both.")] = None,
    tier: Annotated[str | None, Query(description="The call's tier.")] = None,
) -> JSONResponse:
    """Answers from Redis, and from Postgres where Redis can't tell. A running call is never cut."""
    del direction  # only looked at for whether there is such a one
    context = context_of(request)
    if caller is not None and caller != org_id:
        raise NotFoundError("there is no such org")
    price = None if tier is None else await _price(context, tier, org_id)
    state, balance_cents = await _gate(context, org_id)
    used_before_s: int | None = 0
    if price is not None and price.steps and state is GateState.OPEN:
        used_before_s = await _used(context, org_id, price)
    return gate_answer(state, balance_cents, price, used_before_s)


def gate_answer(
    state: GateState, balance_cents: int, price: Price | None, used_before_s: int | None = 0
) -> JSONResponse:
    """What is said of a gate to whoever may know; `price` is that of the tier that was asked for.

    `used_before_s`, which counts for a price with steps, is None where nobody can say: then the dearest step counts.
    """
    if price is not None and used_before_s is None:
        price, used_before_s = price.at_dearest(), 0
    if state is GateState.SUSPENDED:
        return error_response(HTTPStatus.FORBIDDEN, SUSPENDED, "org_suspended", allowed=False)
    if state is not GateState.OPEN:
        return error_response(HTTPStatus.PAYMENT_REQUIRED, EXHAUSTED, "balance_exhausted", allowed=False)
    return JSONResponse(
        {
            "allowed": True,
            "balance_cents": balance_cents,
            "max_duration_seconds": None
            if price is None
            else longest_duration_s(balance_cents, price, used_before_s or 0),
        }
    )


async def _price(context: ApiContext, tier: str, org_id: int) -> Price:
    now = context.payments.clock()
    price = context.prices.held(tier, org_id, now)
    if price is None:
        price = await context.thread_pools.gate.run(
            partial(context.prices.find, context.engine, tier, org_id, now)
        )
    if price is None:
        raise InvalidRequestError(InvalidField("tier", "is not a known tier"))
    return price


async def _used(context: ApiContext, org_id: int, price: Price) -> int | None:
    """What the org has used of the tier in this month, in billable seconds; None while Postgres is away."""
    now = context.payments.clock()
    try:
        return await context.thread_pools.gate.run(
            partial(read_usage_now, context.engine, org_id, price.tier, now)
        )
    except Exception as error:
        if diagnose(error) is Failure.POISON:
            raise
        return None


async def _gate(context: ApiContext, org_id: int) -> tuple[GateState, int]:
    """The gate's state, and the balance."""
    held = await gate_in_redis(context, org_id)
    if held is not None:
        return held
    found = await context.thread_pools.gate.run(partial(read_balances, context.engine, [org_id]))
    if not found:
        raise NotFoundError("there is no such org")
    return found[0].gate_state, found[0].balance_cents


async def gate_in_redis(context: ApiContext, org_id: int) -> tuple[GateState, int] | None:
    """The same, as far as Redis can tell."""
    held = await context.gate_reader.read(org_id)
    if held is None or held.state is None or held.balance_cents is None:
        return None
    return GateState(held.state), held.balance_cents
