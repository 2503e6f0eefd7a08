"""What a telephony program imports: push completed calls, ask gates, hear signals (docs/reference/call-events.md and
docs/reference/gate.md).

It needs redis-py alone, and none of the product's other modules:

    with MeteringClient("redis://meter.internal:6379/0") as metering:
        if metering.gate(42).open:
            ...  # the call runs, and ends
            metering.push({"call_id": 987654321, "org_id": 42, "tier": "bolt", "direction": "outbound",
                           "duration_seconds": Decimal("75.204"), "ended_at": datetime.now(UTC)})

HttpClient has the same methods over HTTP, and needs httpx (`metering[http]`).

Says Redis; Valkey is meant as well.
"""

from metering.client.errors import (
    InvalidField,
    QueueFull,
    Refused,
    SignalsLost,
    TelephonyError,
    Unreachable,
)
from metering.client.gate import Gate
from metering.client.held_call import HeldCall
from metering.client.http_client import HttpClient
from metering.client.keys import EVENT_FIELD, GATE_PREFIX, SIGNAL_FIELD, SIGNALS_LOG, STREAM
from metering.client.limits import BLOCK_S, CHUNK, FIRST_WAIT_S, LONGEST_WAIT_S, ROLE_CHECK_S
from metering.client.metering_client import MeteringClient
from metering.client.priced_hold import PricedHold
from metering.client.signals import Signal, Signals

__all__ = [
    "BLOCK_S",
    "CHUNK",
    "EVENT_FIELD",
    "FIRST_WAIT_S",
    "GATE_PREFIX",
    "LONGEST_WAIT_S",
    "ROLE_CHECK_S",
    "SIGNALS_LOG",
    "SIGNAL_FIELD",
    "STREAM",
    "Gate",
    "HeldCall",
    "HttpClient",
    "InvalidField",
    "MeteringClient",
    "PricedHold",
    "QueueFull",
    "Refused",
    "Signal",
    "Signals",
    "SignalsLost",
    "TelephonyError",
    "Unreachable",
]
