"""What telephony and customers ask all the time, answered without the framework and without a thread.

Only what is asked in the plainest way, by somebody who may ask, and can be answered well: everything else, and whatever goes
wrong, is the framework's, which begins anew. So an answer from here is the same as one from there, or there is none.

A key that was not good lately is the framework's too, so that a wrong one is looked up once. One that was is looked up afresh
all the same.
"""

import re
from collections.abc import Iterable
from hmac import compare_digest
from typing import Final

import psycopg
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from metering.api import accounts, gates
from metering.api.context import ApiContext
from metering.api.responses import MAX_INT, account_answer
from metering.api.thread_pools import OverShareError

_BILLING: Final = accounts.router.prefix
_GATE: Final = re.compile(rf"{gates.router.prefix}/([1-9][0-9]{{0,18}})", re.ASCII)
_DIRECTION: Final = rb"direction=(?:inbound|outbound)"
_TIER: Final = rb"tier=([A-Za-z0-9_-]{1,64})"
_GATE_QUERY: Final = re.compile(rb"|".join((rb"", _DIRECTION, _TIER, _DIRECTION + rb"&" + _TIER)), re.ASCII)
_AUTHORIZATION: Final = re.compile(rb"Bearer ([!-~]{1,256})", re.ASCII)


class QuickAnswers:
    """A layer around the framework."""

    def __init__(self, app: ASGIApp, *, context: ApiContext) -> None:
        self._app = app
        self._context = context
        # For the metrics: they name routes by their patterns.
        self._billing_route = _get_route(accounts.router.routes)
        self._gate_route = _get_route(gates.router.routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let the request through."""
        answer = await self._answer(scope) if scope["type"] == "http" and scope["method"] == "GET" else None
        if answer is None:
            await self._app(scope, receive, send)
        else:
            await answer(scope, receive, send)

    async def _answer(self, scope: Scope) -> Response | None:
        path: str = scope["path"]
        if path == _BILLING and not scope["query_string"]:
            route, org_id = self._billing_route, None
        elif (gate := _GATE.fullmatch(path)) is not None and int(gate[1]) <= MAX_INT:
            route, org_id = self._gate_route, int(gate[1])
        else:
            return None
        credentials = _credentials(scope)
        if credentials is None:
            return None
        scope["route"] = route
        try:
            if org_id is None:
                return await self._billing(credentials)
            return await self._gate(credentials, org_id, scope["query_string"])
        except (psycopg.Error, OverShareError):
            return None

    async def _billing(self, api_key: str) -> Response | None:
        org_id = self._context.auth_rate_limit.org_of(api_key)
        if org_id is None:
            return None
        async with self._context.thread_pools.quick.slot(org_id):
            account = await self._context.reads.billing_of_key(api_key)
        if account is None:
            return None
        self._context.key_uses.record(api_key)
        held_cents = await self._context.held_money.held_cents(account.org_id)
        answer = account_answer(account, self._context.payments.clock(), held_cents)
        return Response(answer.model_dump_json(), media_type="application/json")

    async def _gate(self, credentials: str, org_id: int, query: bytes) -> Response | None:
        asked = _GATE_QUERY.fullmatch(query)
        if asked is None:
            return None
        tier, price = asked[1] or asked[2], None
        if tier is not None:
            price = self._context.prices.held(tier.decode(), org_id, self._context.payments.clock())
            if price is None or price.steps:  # what was used this month is asked in the framework
                return None
        if not await self._may_ask(credentials, org_id):
            return None
        held = await gates.gate_in_redis(self._context, org_id)
        return None if held is None else gates.gate_answer(*held, price)

    async def _may_ask(self, credentials: str, org_id: int) -> bool:
        token = self._context.telephony_token
        if token is not None and compare_digest(credentials.encode(), token.get_secret_value().encode()):
            return True
        if self._context.auth_rate_limit.org_of(credentials) != org_id:
            return False
        async with self._context.thread_pools.quick.slot(org_id):
            good = await self._context.reads.org_of_key(credentials) == org_id
        if good:
            self._context.key_uses.record(credentials)
        return good


def _credentials(scope: Scope) -> str | None:
    """The key or token that is sent, if it is sent once and plainly."""
    sent = [value for name, value in scope["headers"] if name == b"authorization"]
    plain = _AUTHORIZATION.fullmatch(sent[0]) if len(sent) == 1 else None
    return None if plain is None else plain[1].decode()


def _get_route(routes: Iterable[BaseRoute]) -> BaseRoute:
    return next(route for route in routes if "GET" in (getattr(route, "methods", None) or ()))
