"""Who asks: an org, by its key, or telephony, by its token (docs/reference/http-api.md#keys)."""

import hmac
from functools import partial
from typing import Annotated, Final

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from structlog.contextvars import bind_contextvars

from db.accounts.api_keys import PREFIX, find_org
from db.postgres.engine import transaction
from metering.api.context import ApiContext, context_of
from metering.api.errors import TooManyFailuresError, UnauthenticatedError

API_KEY: Final = HTTPBearer(
    scheme_name="api_key",
    description="An API key, `sk_live_...`: it names the organization.",
    auto_error=False,
)
TELEPHONY_TOKEN: Final = HTTPBearer(
    scheme_name="telephony_token",
    description="The operator's token for telephony: every org's gate.",
    auto_error=False,
)

Credentials = HTTPAuthorizationCredentials | None


async def known_org(request: Request, credentials: Annotated[Credentials, Security(API_KEY)]) -> int:
    """The org whose key was sent. Raises UnauthenticatedError, TooManyFailuresError."""
    return await _org_of(context_of(request), _token(credentials), _address(request))


async def known_org_or_telephony(
    request: Request,
    credentials: Annotated[Credentials, Security(API_KEY)],
    _: Annotated[
        Credentials, Security(TELEPHONY_TOKEN)
    ],  # the same header: so that the documentation names both
) -> int | None:
    """The same, or None where telephony's token was sent."""
    context, token = context_of(request), _token(credentials)
    expected = context.telephony_token
    if expected is not None and hmac.compare_digest(token.encode(), expected.get_secret_value().encode()):
        return None
    return await _org_of(context, token, _address(request))


async def telephony(request: Request, credentials: Annotated[Credentials, Security(TELEPHONY_TOKEN)]) -> None:
    """Telephony, by its token, and nobody else. Raises UnauthenticatedError, TooManyFailuresError."""
    context = context_of(request)
    if context.telephony_token is None:
        raise UnauthenticatedError(
            "nobody may do this here: the operator hasn't set METERING_TELEPHONY_TOKEN"
        )
    if credentials is None:
        raise UnauthenticatedError("send telephony's token in a header: Authorization: Bearer TOKEN")
    token = credentials.credentials
    if hmac.compare_digest(token.encode(), context.telephony_token.get_secret_value().encode()):
        return
    if (
        context.auth_rate_limit.org_of(token) is None
    ):  # an org's good key is in the wrong place, but guesses at nothing
        wait_s = context.auth_rate_limit.record_failure(_address(request), token)
        if wait_s is not None:
            raise TooManyFailuresError(wait_s)
    raise UnauthenticatedError("this takes telephony's token alone")


OrgId = Annotated[int, Depends(known_org)]
"""The org that asks."""
OrgIdOrTelephony = Annotated[int | None, Depends(known_org_or_telephony)]
"""The org that asks; None is telephony."""


def _token(credentials: Credentials) -> str:
    if credentials is None:
        raise UnauthenticatedError(f"send your API key in a header: Authorization: Bearer {PREFIX}...")
    return credentials.credentials


def _address(request: Request) -> str:
    return "" if request.client is None else request.client.host


async def _org_of(context: ApiContext, api_key: str, address: str) -> int:
    """Asked afresh each time: a key that is revoked stops at once."""
    org_id = await _look_up(context, api_key)
    if org_id is None:
        wait_s = context.auth_rate_limit.record_failure(address, api_key)
        raise UnauthenticatedError if wait_s is None else TooManyFailuresError(wait_s)
    context.auth_rate_limit.record_success(api_key, org_id)
    context.key_uses.record(api_key)
    bind_contextvars(org_id=org_id)  # for the log
    return org_id


async def _look_up(context: ApiContext, api_key: str) -> int | None:
    if not api_key.startswith(PREFIX):
        return None  # what is no key at all costs no look into the database
    lately = context.auth_rate_limit.org_of(api_key)
    if lately is None:
        return await context.key_lookups.org_of(api_key)
    return await context.thread_pools.gate.run_for(lately, partial(_find, context, api_key))


def _find(context: ApiContext, api_key: str) -> int | None:
    with transaction(context.engine) as connection:
        return find_org(connection, api_key)
