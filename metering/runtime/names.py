"""What every Redis key and every schema of Postgres is called. Nothing else writes such a name (tests/runtime/test_names.py).

`metering/client/` has its own, because it imports none of the rooms; a test holds the two together.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

# What belongs to orgs: an installation that is parted will have each of these once for every part.

SCHEMA: Final = "public"
"""Where the tables are."""

STREAM: Final = "calls:completed"
"""The stream of completed calls that are still to be billed."""

EVENT_FIELD: Final = b"event"
"""The one field of its entries."""

SIGNALS_LOG: Final = "balance:signals:log"
"""The stream of the newest signals. One script writes it together with gates."""
SIGNALS_CHANNEL: Final = "balance:signals"
"""Where signals are published: a channel, which has names as keys have."""

ALL_GATES: Final = "gate:*"
"""The pattern of all gates' keys, for SCAN. It may find what is no org's gate: `org_of_gate` tells."""

_MAX_ORG_ID: Final = 2**63 - 1


def table(name: str) -> str:
    """A table with its schema, for SQL in which the plain name means something else."""
    return f"{SCHEMA}.{name}"


def gate_key(org_id: int) -> str:
    """An org's gate: a hash of `state`, `balance_cents` and `version`. The key ends with the org's id."""
    return f"gate:{org_id}"


def gate_keys(org_ids: Iterable[int]) -> list[str]:
    """The gates of many orgs, in their order. Where time counts, give it a list, not a generator."""
    return [f"gate:{org_id}" for org_id in org_ids]


def org_of_gate(key: bytes) -> int | None:
    """The org whose gate has this key; None where it is no org's, as no id of Postgres is spelt so."""
    prefix, _, digits = key.rpartition(b":")
    if (
        prefix != b"gate"
        or not digits.isdigit()
        or digits.startswith(b"0")
        or len(digits) > len(str(_MAX_ORG_ID))
    ):
        return None
    org_id = int(digits)
    return org_id if org_id <= _MAX_ORG_ID else None


_HOLDS: Final = "holds"
"""What all keys of holds begin with. The functions make them from an org's: they are called with that alone."""

HOLDING_ORGS: Final = f"{_HOLDS}:orgs"
"""The orgs that have holds."""
HOLDS_REFUSED: Final = f"{_HOLDS}:refused"
"""By org: the first hold that was refused for want of money since the jobs last took what is here."""
HOLD_COUNTS: Final = f"{_HOLDS}:counts"
"""What became of holds, counted since Redis was last emptied."""
ALL_HOLDS: Final = f"{_HOLDS}:*"
"""The pattern of all keys of holds, for the rights of users."""


def holds_key(org_id: int) -> str:
    """An org's holds: a hash of call ids to what is held for them. The key ends with the org's id."""
    return f"{_HOLDS}:{org_id}"


def hold_ends_key(org_id: int) -> str:
    """When they end: a sorted set."""
    return f"{_HOLDS}:{org_id}:ends"


def ended_calls_key(org_id: int) -> str:
    """The org's calls whose event was seen, and when: a sorted set."""
    return f"{_HOLDS}:{org_id}:ended"


# What belongs to the installation.


@dataclass(frozen=True, slots=True)
class JobKeys:
    """The keys that dramatiq makes in a namespace. What they mean is its own affair: its `redis/dispatch.lua` describes them."""

    namespace: str
    """What each of them begins with."""

    @property
    def heartbeats(self) -> str:
        """When each worker was last heard of."""
        return f"{self.namespace}:__heartbeats__"

    def queue(self, name: str) -> str:
        """The ids of the messages that wait in a queue."""
        return f"{self.namespace}:{name}"

    def messages(self, queue: str) -> str:
        """A queue's messages by their ids, until they are acked."""
        return f"{self.namespace}:{queue}.msgs"

    def in_hand(self, worker: str, queue: str) -> str:
        """The ids of those of a queue's messages that a worker is at."""
        return f"{self.namespace}:__acks__.{worker}.{queue}"


JOBS: Final = JobKeys("metering:jobs")
"""Of the broker."""
BENCH_JOBS: Final = JobKeys("bench:messages")
"""Of the broker that `metering bench` compares the stream with."""
