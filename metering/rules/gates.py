"""When an org's gate is closed, and what is said when that changes (docs/reference/gate.md)."""

from enum import StrEnum

import msgspec


class GateState(StrEnum):
    """Whether new calls may start. Only `open` lets one start, inbound and outbound by the same rule."""

    OPEN = "open"
    EXHAUSTED = "exhausted"


class SignalType(StrEnum):
    """What a signal says."""

    EXHAUSTED = "balance.exhausted"
    RESTORED = "balance.restored"


def gate_state(balance_cents: int) -> GateState:
    """An org is exhausted at 0 and below, however it came there."""
    return GateState.OPEN if balance_cents > 0 else GateState.EXHAUSTED


class Balance(msgspec.Struct, frozen=True, gc=False):
    """An org's balance at a version: what its gate follows."""

    org_id: int
    balance_cents: int
    version: int
