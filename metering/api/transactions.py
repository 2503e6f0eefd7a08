"""`/v1/billing/transactions`: the ledger, newest first."""

from datetime import datetime
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any, Final, Literal

import msgspec
from fastapi import APIRouter, Query, Request, Response
from pydantic import BeforeValidator, Field, WithJsonSchema

from db.ledger.transaction_list import (
    ListedTransaction,
    PageOfList,
    TransactionFilter,
    TransactionPage,
    list_transactions,
)
from db.models import Kind
from metering.api.auth import OrgId, known_org
from metering.api.context import context_of
from metering.api.parameters import plain_query, whole_number
from metering.api.responses import FAILED, MAX_INT, UNAUTHENTICATED, Answer, answer, answers, invalid_request
from metering.rules.durations import to_seconds
from metering.rules.money import format_usd
from metering.rules.periods import since, until
from metering.rules.times import format_time

router = APIRouter(prefix="/v1/billing", tags=["Transactions"])

MAX_LIMIT: Final = 200
_DATE_OR_TIME: Final = WithJsonSchema(
    {"anyOf": [{"type": "string", "format": "date"}, {"type": "string", "format": "date-time"}]}
)
_NO_METADATA: Final = msgspec.Raw(b"{}")


class TransactionAnswer(Answer):
    """One change of the balance."""

    id: int
    kind: Literal["credit", "debit", "adjustment", "refund"]
    description: str
    amount_cents: int = Field(description="Negative for debits, positive for credits.")
    amount_usd: str = Field(description="The same in dollars.", pattern=r"^-?\d+\.\d\d$")
    call_id: int | None = Field(description="Of a debit: the call.")
    phone_number_id: int | None
    phone_number_value: str | None
    metadata: dict[str, Any] = Field(description="As it came with the call.")
    created_at: datetime = Field(description="UTC, with milliseconds.")
    call_id_str: str | None = Field(
        description="`call_id` as text: JavaScript's numbers lose digits above 2^53.", pattern=r"^\d+$"
    )
    tier: str | None = Field(description="Of a debit, as the next ones; null where it is of no call.")
    direction: Literal["inbound", "outbound"] | None
    duration_seconds: float | None = Field(
        description="As it came with the call; at most 6 decimals.", json_schema_extra={"minimum": 0}
    )
    ended_at: datetime | None = Field(description="When the call ended: UTC, with milliseconds.")


class TransactionsAnswer(Answer):
    """A page of transactions."""

    results: list[TransactionAnswer]
    total: int = Field(description="How many the whole list has, wherever the page begins.")
    limit: int
    offset: int


EXAMPLE: Final[dict[str, Any]] = {
    "results": [
        {
            "id": 3421,
            "kind": "debit",
            "description": "Call billing: 2 minutes × $0.08",
            "amount_cents": -16,
            "amount_usd": "-0.16",
            "call_id": 987654321,
            "phone_number_id": 201,
            "phone_number_value": "+15551234567",
            "metadata": {},
            "created_at": "2026-04-20T18:25:06.201Z",
            "call_id_str": "987654321",
            "tier": "bolt",
            "direction": "outbound",
            "duration_seconds": 75,
            "ended_at": "2026-04-20T18:25:05.934Z",
        }
    ],
    "total": 1,
    "limit": 50,
    "offset": 0,
}


@router.get(
    "/transactions",
    summary="List transactions",
    dependencies=[plain_query(known_org)],
    responses=answers(
        answer(HTTPStatus.OK, TransactionsAnswer, EXAMPLE, "A page, newest first."),
        invalid_request("limit", "must be less than or equal to 200"),
        UNAUTHENTICATED,
        FAILED,
    ),
)
async def get_transactions(
    request: Request,
    org_id: OrgId,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT), whole_number] = 50,
    offset: Annotated[int, Query(ge=0, le=MAX_INT), whole_number] = 0,
    before_id: Annotated[
        int | None,
        Query(
            ge=1,
            le=MAX_INT,
            description="Only those with a lower id: the last one of the page before. Unlike those of `offset`, such pages don't"
            " move while calls arrive.",
        ),
        whole_number,
    ] = None,
    kind: Kind | None = None,
    call_id: Annotated[
        int | None,
        Query(ge=1, le=MAX_INT, description="The debit of this call, if there is one."),
        whole_number,
    ] = None,
    start_date: Annotated[
        datetime | None,
        BeforeValidator(since),
        _DATE_OR_TIME,
        Query(description="From then on: ISO 8601, UTC unless it says otherwise."),
    ] = None,
    end_date: Annotated[
        datetime | None,
        BeforeValidator(until),
        _DATE_OR_TIME,
        Query(description="Up to then: without that instant, but with the whole of a date."),
    ] = None,
) -> Response:
    """Credits, debits, refunds and adjustments."""
    context = context_of(request)
    wanted = TransactionFilter(kind, start_date, end_date, call_id)
    asked = PageOfList(limit, offset, before_id)
    page = await context.thread_pools.list.run_for(
        org_id, partial(list_transactions, context.engine, org_id, wanted, asked)
    )
    return Response(_encode(page, limit, offset), media_type="application/json")


def _encode(page: TransactionPage, limit: int, offset: int) -> bytes:
    """The page as JSON: metadata by the very bytes that came, because a number that is read and written again may be another."""
    results = [_transaction(each) for each in page.results]
    return msgspec.json.encode({"results": results, "total": page.total, "limit": limit, "offset": offset})


def _transaction(row: ListedTransaction) -> dict[str, Any]:
    return {
        "id": row.id,
        "kind": row.kind,
        "description": row.description,
        "amount_cents": row.amount_cents,
        "amount_usd": format_usd(row.amount_cents),
        "call_id": row.call_id,
        "phone_number_id": row.phone_number_id,
        "phone_number_value": row.phone_number_value,
        "metadata": _NO_METADATA if row.metadata_json is None else msgspec.Raw(row.metadata_json.encode()),
        "created_at": format_time(row.created_at),
        "call_id_str": None if row.call_id is None else str(row.call_id),
        "tier": row.tier,
        "direction": row.direction,
        "duration_seconds": None if row.duration_us is None else to_seconds(row.duration_us),
        "ended_at": None if row.ended_at is None else format_time(row.ended_at),
    }
