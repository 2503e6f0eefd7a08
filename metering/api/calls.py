"""`/v1/calls`: money held for calls that start, go on, or come to nothing (docs/reference/holds.md#over-http)."""

from datetime import UTC, timedelta
from http import HTTPStatus
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import JSONResponse
from pydantic import AwareDatetime, Field

from metering.api.auth import OrgIdOrTelephony, known_org_or_telephony, telephony
from metering.api.bodies import Body, describes, json_body
from metering.api.call_holds import AskedHold, Granted, NotGranted, renew, start
from metering.api.context import context_of
from metering.api.errors import InvalidField, InvalidRequestError, NotFoundError, error_response
from metering.api.gates import EXHAUSTED, SUSPENDED, Direction, SuspendedGateAnswer
from metering.api.parameters import plain_query, whole_number
from metering.api.responses import (
    BODY_REFUSED,
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
from metering.rules.events import MAX_DURATION_S
from metering.rules.hold_terms import decode_terms
from metering.rules.times import format_time, from_milliseconds
from metering.signals.holds import Hold, HoldOutcome

router = APIRouter(prefix="/v1/calls", tags=["Calls"])

AHEAD: Final = timedelta(minutes=5)
"""How far ahead of our clock a call's start may lie: as an event's end may."""
LONGEST_AGO: Final = timedelta(seconds=MAX_DURATION_S) + AHEAD

INSUFFICIENT: Final = (
    "the calls that run hold what there is: not even one first increment of this tier is available"
)
TOO_MANY: Final = "as many calls of this organization run as may at once"
ENDED: Final = "this call has ended: its event was seen in the last 24 hours"

CallId = Annotated[int, Field(ge=1, le=MAX_INT)]
CallIdInPath = Annotated[int, Path(ge=1, le=MAX_INT), whole_number]


class CallStart(Body):
    """A call that wants to start."""

    call_id: int = Field(ge=1, le=MAX_INT, description="The id that its event will have.")
    org_id: int = Field(ge=1, le=MAX_INT)
    direction: Direction
    tier: str = Field(min_length=1, max_length=64)
    seconds: int = Field(ge=1, le=MAX_DURATION_S, description="How long it is to be able to last.")


class CallRenewal(Body):
    """A call that runs, and is to go on."""

    org_id: int = Field(ge=1, le=MAX_INT)
    direction: Direction
    tier: str = Field(min_length=1, max_length=64)
    started_at: AwareDatetime = Field(strict=False, description="When it started; ISO 8601 with an offset.")
    seconds: int = Field(
        ge=1, le=MAX_DURATION_S, description="How long it is to be able to last in all, from its start."
    )


class HeldCallAnswer(Answer):
    """Money is held for the call."""

    allowed: Literal[True]
    call_id: int
    max_duration_seconds: int = Field(
        description="How long it may last, in all: what was asked for, or as much as is covered. Cut it before that is over."
    )
    held_cents: int = Field(description="What is held for it: the most that it may cost.")
    available_cents: int = Field(
        description="What the organization's balance leaves for other calls after that."
    )
    expires_at: str = Field(
        description="When the hold lapses: it still counts then, but not as a running call."
    )


class RenewedCallAnswer(HeldCallAnswer):
    """Money is held for the call to go on."""

    final: bool = Field(
        description="Whether the money ends there, as things stand: no longer call is covered."
    )


class CancelledCallAnswer(Answer):
    """Nothing is held for the call."""

    call_id: int
    held_cents: Literal[0]
    available_cents: int


class NoMoneyAnswer(Problem):
    """No money for this call."""

    code: Literal["balance_exhausted", "insufficient_balance"]
    allowed: Literal[False]


class RefusedCallAnswer(Problem):
    """It may not start, or not go on."""

    allowed: Literal[False]


class ListedCall(Answer):
    """A call for which money is held."""

    call_id: int
    call_id_str: str = Field(description="The same, for programs whose numbers lose digits above 2^53.")
    tier: str | None = Field(description="Null for one that telephony holds by itself, in Redis.")
    direction: str | None
    held_cents: int
    max_duration_seconds: int | None
    held_since: str
    expires_at: str
    lapsed: bool = Field(
        description="Whether its time is over, and no event has come: it is late, or lost. Its money still counts."
    )


class CallListAnswer(Answer):
    """An organization's calls for which money is held."""

    results: list[ListedCall]
    total: int
    limit: int
    offset: int


_START: Final[dict[str, Any]] = {
    "call_id": 987654321,
    "org_id": 42,
    "direction": "outbound",
    "tier": "bolt",
    "seconds": 600,
}
_RENEWAL: Final[dict[str, Any]] = {
    "org_id": 42,
    "direction": "outbound",
    "tier": "bolt",
    "started_at": "2026-04-20T18:25:06.201Z",
    "seconds": 1_200,
}
_HELD: Final[dict[str, Any]] = {
    "allowed": True,
    "call_id": 987654321,
    "max_duration_seconds": 600,
    "held_cents": 80,
    "available_cents": 920,
    "expires_at": "2026-04-20T18:37:06.201Z",
}
_LISTED: Final[dict[str, Any]] = {
    "call_id": 987654321,
    "call_id_str": "987654321",
    "tier": "bolt",
    "direction": "outbound",
    "held_cents": 80,
    "max_duration_seconds": 600,
    "held_since": "2026-04-20T18:25:06.201Z",
    "expires_at": "2026-04-20T18:37:06.201Z",
    "lapsed": False,
}
_NO_MONEY: Final = tuple(
    answer(
        HTTPStatus.PAYMENT_REQUIRED,
        NoMoneyAnswer,
        {"detail": detail, "code": code, "allowed": False},
        description,
    )
    for detail, code, description in (
        (EXHAUSTED, "balance_exhausted", "The balance is used up."),
        (INSUFFICIENT, "insufficient_balance", "What is there is held for other calls."),
    )
)
_SUSPENDED: Final = answer(
    HTTPStatus.FORBIDDEN,
    SuspendedGateAnswer,
    {"detail": SUSPENDED, "code": "org_suspended", "allowed": False},
    "An operator has suspended the organization.",
)
_ENDED: Final = answer(
    HTTPStatus.CONFLICT,
    RefusedCallAnswer,
    {"detail": ENDED, "code": "call_ended", "allowed": False},
    "The call's event was seen already.",
)
_NOT_FOUND: Final = documented_error(
    HTTPStatus.NOT_FOUND, "not_found", "there is no such tier", "No such organization, or no such tier."
)


@router.post(
    "",
    status_code=HTTPStatus.CREATED,
    summary="Hold money for a call",
    dependencies=[plain_query(telephony)],
    openapi_extra=describes(CallStart, _START),
    responses=answers(
        answer(HTTPStatus.CREATED, HeldCallAnswer, _HELD, "It may start."),
        invalid_request("seconds", "must be greater than or equal to 1"),
        UNAUTHENTICATED,
        *_NO_MONEY,
        _SUSPENDED,
        _NOT_FOUND,
        _ENDED,
        answer(
            HTTPStatus.TOO_MANY_REQUESTS,
            RefusedCallAnswer,
            {"detail": TOO_MANY, "code": "too_many_calls", "allowed": False},
            "The organization runs as many calls as may at once.",
        ),
        BODY_REFUSED,
        FAILED,
    ),
)
async def start_call(
    request: Request, asked: Annotated[CallStart, Depends(json_body(CallStart, telephony))]
) -> JSONResponse:
    """Asked before the call starts. Asked again for the same call, it gives the first answer. 503: telephony decides."""
    context = context_of(request)
    hold = AskedHold(asked.org_id, asked.call_id, asked.tier, asked.direction, asked.seconds)
    with context.thread_pools.holds_in_hand.one():
        return _told(await start(context, hold), asked.call_id, HTTPStatus.CREATED)


@router.post(
    "/{call_id}/renew",
    summary="Hold more money for a call",
    dependencies=[plain_query(telephony)],
    openapi_extra=describes(CallRenewal, _RENEWAL),
    responses=answers(
        answer(
            HTTPStatus.OK,
            RenewedCallAnswer,
            {
                **_HELD,
                "max_duration_seconds": 1_200,
                "held_cents": 160,
                "available_cents": 840,
                "final": False,
            },
            "It may go on.",
        ),
        invalid_request("tier", "must be that of the call's start: bolt"),
        UNAUTHENTICATED,
        *_NO_MONEY,
        _SUSPENDED,
        _NOT_FOUND,
        _ENDED,
        BODY_REFUSED,
        FAILED,
    ),
)
async def renew_call(
    request: Request,
    call_id: CallIdInPath,
    asked: Annotated[CallRenewal, Depends(json_body(CallRenewal, telephony))],
) -> JSONResponse:
    """Asked while the call runs. It gets as much as there is; whatever it gets, what was held before stays held."""
    context = context_of(request)
    now = context.payments.clock()
    if not now - LONGEST_AGO <= asked.started_at <= now + AHEAD:
        raise InvalidRequestError(
            InvalidField("started_at", "must lie in the last seven days, at most 5 minutes ahead of now")
        )
    hold = AskedHold(asked.org_id, call_id, asked.tier, asked.direction, asked.seconds)
    with context.thread_pools.holds_in_hand.one():
        return _told(
            await renew(context, hold, asked.started_at.astimezone(UTC), now), call_id, HTTPStatus.OK
        )


@router.delete(
    "/{call_id}",
    summary="Hold no money for a call",
    dependencies=[plain_query(telephony)],
    responses=answers(
        answer(
            HTTPStatus.OK,
            CancelledCallAnswer,
            {"call_id": 987654321, "held_cents": 0, "available_cents": 1_000},
            "Nothing is held for it.",
        ),
        invalid_request("org_id", "is required"),
        UNAUTHENTICATED,
        FAILED,
    ),
)
async def cancel_call(
    request: Request,
    call_id: CallIdInPath,
    org_id: Annotated[int, Query(ge=1, le=MAX_INT), whole_number],
) -> JSONResponse:
    """Only for a call that will never have an event: one that never started. To cancel it again changes nothing."""
    context = context_of(request)
    with context.thread_pools.holds_in_hand.one():
        done = await context.holds.cancel(org_id, call_id)
    return JSONResponse({"call_id": call_id, "held_cents": 0, "available_cents": done.available_cents})


@router.get(
    "",
    summary="List calls for which money is held",
    dependencies=[plain_query(known_org_or_telephony)],
    responses=answers(
        answer(
            HTTPStatus.OK,
            CallListAnswer,
            {"results": [_LISTED], "total": 1, "limit": 50, "offset": 0},
            "Those that end soonest first.",
        ),
        invalid_request("org_id", "is required with telephony's token"),
        UNAUTHENTICATED,
        documented_error(HTTPStatus.NOT_FOUND, "not_found", "there is no such org", "Not an org of yours."),
        FAILED,
    ),
)
async def list_calls(
    request: Request,
    caller: OrgIdOrTelephony,
    org_id: Annotated[
        int | None,
        Query(ge=1, le=MAX_INT, description="Whose; left out, it is that of the key."),
        whole_number,
    ] = None,
    limit: Annotated[int, Query(ge=1, le=200), whole_number] = 50,
    offset: Annotated[int, Query(ge=0, le=MAX_INT), whole_number] = 0,
) -> CallListAnswer:
    """With an organization's key its own; with telephony's token any one's."""
    context = context_of(request)
    if org_id is None and caller is None:
        raise InvalidRequestError(InvalidField("org_id", "is required with telephony's token"))
    wanted = org_id if org_id is not None else caller
    if wanted is None or (caller is not None and caller != wanted):
        raise NotFoundError("there is no such org")
    async with context.thread_pools.quick.slot(wanted):
        held = await context.holds.calls(wanted)
    page = held.holds[offset : offset + limit]
    return CallListAnswer(
        results=[_listed(hold, held.now_ms) for hold in page],
        total=len(held.holds),
        limit=limit,
        offset=offset,
    )


def _listed(hold: Hold, now_ms: int) -> ListedCall:
    terms = decode_terms(hold.terms)
    return ListedCall(
        call_id=hold.call_id,
        call_id_str=str(hold.call_id),
        tier=None if terms is None else terms.tier,
        direction=None if terms is None else terms.direction,
        held_cents=hold.cents,
        max_duration_seconds=None if terms is None else terms.max_duration_s,
        held_since=format_time(from_milliseconds(hold.since_ms)),
        expires_at=format_time(from_milliseconds(hold.ends_ms)),
        lapsed=hold.lapsed(now_ms),
    )


def _told(came_of_it: Granted | NotGranted, call_id: int, status: HTTPStatus) -> JSONResponse:
    if isinstance(came_of_it, NotGranted):
        return _refusal(came_of_it.outcome)
    told = {
        "allowed": True,
        "call_id": call_id,
        "max_duration_seconds": came_of_it.max_duration_s,
        "held_cents": came_of_it.held_cents,
        "available_cents": came_of_it.available_cents,
        "expires_at": format_time(from_milliseconds(came_of_it.expires_ms)),
    }
    if status is HTTPStatus.OK:
        told["final"] = came_of_it.final
    return JSONResponse(told, status)


_REFUSALS: Final = {
    HoldOutcome.EXHAUSTED: (HTTPStatus.PAYMENT_REQUIRED, EXHAUSTED, "balance_exhausted"),
    HoldOutcome.INSUFFICIENT: (HTTPStatus.PAYMENT_REQUIRED, INSUFFICIENT, "insufficient_balance"),
    HoldOutcome.SUSPENDED: (HTTPStatus.FORBIDDEN, SUSPENDED, "org_suspended"),
    HoldOutcome.TOO_MANY_CALLS: (HTTPStatus.TOO_MANY_REQUESTS, TOO_MANY, "too_many_calls"),
    HoldOutcome.ENDED: (HTTPStatus.CONFLICT, ENDED, "call_ended"),
}


def _refusal(outcome: HoldOutcome) -> JSONResponse:
    status, detail, code = _REFUSALS[outcome]
    return error_response(status, detail, code, allowed=False)
