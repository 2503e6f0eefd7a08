"""What the routes work with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import cast

import redis
from fastapi import Request
from pydantic import SecretStr
from sqlalchemy import Engine

from db.accounts.api_keys import find_orgs, note_uses
from db.accounts.quick_reads import QuickReads
from db.attempts.refused_holds import note_refused
from metering.api.held_money import HeldMoney
from metering.api.key_lookups import KeyLookups
from metering.api.key_uses import KeyUses
from metering.api.price_versions import PriceVersions
from metering.api.prices import Prices
from metering.api.rate_limit import AuthRateLimit
from metering.api.refusal_notes import RefusalNotes
from metering.api.thread_pools import ThreadPools
from metering.payments.context import Payments
from metering.signals.gate_reader import GateReader
from metering.signals.holds import HoldsAsync


@dataclass(frozen=True, slots=True)
class ApiContext:
    """One server's connections, secrets and threads; made by whoever starts it."""

    engine: Engine
    """For what is quick; `payments` has one of its own. It wants `QUICK_CONNECTIONS` of metering/api/thread_pools.py."""
    reads: QuickReads
    """Opened and closed with the server, as the gate reader is closed."""
    gate_reader: GateReader
    holds: HoldsAsync
    """On the gate reader's client, which is closed with the server."""
    stream: redis.Redis
    """For completed calls; threads share it."""
    payments: Payments
    webhook_secrets: tuple[str, ...] = field(default=(), repr=False)
    """What Stripe's webhooks may be signed with. Empty: none is believed."""
    telephony_token: SecretStr | None = None
    """What opens every org's gate. None: nothing but an org's own key opens its gate."""
    thread_pools: ThreadPools = field(default_factory=ThreadPools)
    prices: Prices = field(default_factory=Prices)
    auth_rate_limit: AuthRateLimit = field(default_factory=AuthRateLimit)
    key_lookups: KeyLookups = field(init=False)
    key_uses: KeyUses = field(init=False)
    price_versions: PriceVersions = field(init=False)
    refusal_notes: RefusalNotes = field(init=False)
    held_money: HeldMoney = field(init=False)

    def __post_init__(self) -> None:
        """Make what follows from the rest."""
        object.__setattr__(self, "key_lookups", KeyLookups(self._find_orgs))
        object.__setattr__(self, "key_uses", KeyUses(self._note_uses))
        object.__setattr__(self, "price_versions", PriceVersions(self.reads.price_book_version))
        object.__setattr__(self, "refusal_notes", RefusalNotes(self._note_refused))
        object.__setattr__(self, "held_money", HeldMoney(self.holds))

    @property
    def prompt_payments(self) -> Payments:
        """As `payments`, on the quick connections: for what asks Stripe nothing and mustn't wait for whoever does."""
        return replace(self.payments, engine=self.engine)

    async def _note_refused(self, first_increments: Mapping[int, int]) -> None:
        await self.thread_pools.delivery.run(partial(note_refused, self.engine, first_increments))

    async def _note_uses(self, hashes: Sequence[bytes]) -> None:
        await self.thread_pools.delivery.run(partial(note_uses, self.engine, hashes))

    async def _find_orgs(self, hashes: Sequence[bytes]) -> Mapping[bytes, int]:
        return await self.thread_pools.key_lookup.run(partial(find_orgs, self.engine, hashes))


def context_of(request: Request) -> ApiContext:
    """The context of the server that got `request`."""
    return cast("ApiContext", request.app.state.context)
