"""When an org's gate is closed, and what is said when that changes (docs/reference/gate.md)."""

from enum import StrEnum
from typing import Final

import msgspec


class GateState(StrEnum):
    """Whether new calls may start. Only `open` lets one start, inbound and outbound by the same rule."""

    OPEN = "open"
    EXHAUSTED = "exhausted"
    SUSPENDED = "suspended"
    """By an operator, whatever the balance."""


class SignalType(StrEnum):
    """What a signal says. The state that it leads to stands beside it."""

    EXHAUSTED = "balance.exhausted"
    RESTORED = "balance.restored"
    SUSPENDED = "org.suspended"
    RESUMED = "org.resumed"


MAX_CONCURRENT_CALLS: Final = 1_000_000
"""The highest limit of an org's concurrent calls: far above what anybody needs, far below what Lua's numbers hold."""

MISSING_GATE: Final = GateState.EXHAUSTED
"""What a gate that isn't there counts as."""


def gate_state(balance_cents: int, *, suspended: bool) -> GateState:
    """An org is exhausted at 0 and below, however it came there; one that is suspended is that, whatever its balance."""
    if suspended:
        return GateState.SUSPENDED
    return GateState.OPEN if balance_cents > 0 else GateState.EXHAUSTED


def signal_type(before: GateState, state: GateState) -> SignalType:
    """What a change from one state to another is called. say.lua has the same."""
    if state is GateState.SUSPENDED:
        return SignalType.SUSPENDED
    if before is GateState.SUSPENDED:
        return SignalType.RESUMED
    return SignalType.RESTORED if state is GateState.OPEN else SignalType.EXHAUSTED


class Balance(msgspec.Struct, frozen=True, gc=False):
    """An org's account at a version: what its gate follows."""

    org_id: int
    balance_cents: int
    version: int
    suspended: bool = False
    max_concurrent_calls: int | None = None
    """How many of the org's calls that take holds may run at once; None is no limit (docs/reference/holds.md)."""

    @property
    def gate_state(self) -> GateState:
        """The state of the org's gate."""
        return gate_state(self.balance_cents, suspended=self.suspended)
