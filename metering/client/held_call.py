"""What came of holding what a call may cost."""

from dataclasses import dataclass
from typing import Any, Final

from metering.client.answers import as_text
from metering.client.errors import InvalidField

MAX_CENTS: Final = 2**53 - 1
MAX_TTL_SECONDS: Final = 691_200
"""Eight days. Both are what the functions take (docs/reference/holds.md#functions)."""


@dataclass(frozen=True, slots=True)
class HeldCall:
    """What was answered, and the org as it is after that."""

    org_id: int
    call_id: int
    outcome: str
    """`granted`; or why not: `insufficient`, `exhausted`, `suspended`, `too_many_calls`, `ended`. Cancelled: `ended`."""
    available_cents: int
    """The org's: its balance minus all that is held."""
    held_cents: int
    """The org's."""
    running_calls: int
    """The org's."""

    @property
    def granted(self) -> bool:
        """Only this lets a call start, or go on past what was held before."""
        return self.outcome == "granted"


def read_answer(org_id: int, call_id: int, answer: Any) -> HeldCall:
    """What a function has answered."""
    outcome, available_cents, held_cents, running_calls = answer[:4]
    return HeldCall(
        org_id, call_id, as_text(outcome), int(available_cents), int(held_cents), int(running_calls)
    )


def check_amount(name: str, value: object, lowest: int, highest: int) -> int:
    """Raises InvalidField for what no hold can be."""
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
        raise InvalidField(name, f"must be an integer from {lowest} to {highest}")
    return value
