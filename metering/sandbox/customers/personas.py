"""Personas: who pays how in a demo, the part that each of the busiest orgs' customers plays, in amounts that fit what it
spends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from metering.rules.payments import MIN_TOP_UP_CENTS

START_SHARE: Final = 0.15
"""Of what an org is likely to spend, its balance to begin with: soon used up, so that much is seen."""
TOP_UP_SHARE: Final = 0.2
RELOAD_SHARE: Final = 0.15
MINIMUM_SHARE: Final = 0.05

VISA: Final = "pm_card_visa"
CHALLENGED: Final = "pm_card_authenticationRequired"
FAILING: Final = "pm_card_chargeCustomerFail"
"""A card that can be saved, and not charged."""


class Persona(StrEnum):
    """How a customer pays, and what comes of it."""

    RELOADS = "reload"
    TOPS_UP = "top-up"
    CAPPED = "capped reload"
    """One reload fits into the month."""
    MEETS_3DS = "top-up, 3DS"
    CARD_FAILS = "failing reload"
    """The card takes one reload, and then begins to fail."""
    IS_DECLINED = "declined top-up"

    @property
    def reloads(self) -> bool:
        """Whether it has auto-reload enabled."""
        return self in {Persona.RELOADS, Persona.CAPPED, Persona.CARD_FAILS}

    @property
    def card(self) -> str:
        """The card that is saved, as Stripe names its test cards."""
        return {Persona.MEETS_3DS: CHALLENGED, Persona.IS_DECLINED: FAILING}.get(self, VISA)


BILL: Final = (
    *(Persona.RELOADS, Persona.TOPS_UP, Persona.CAPPED, Persona.MEETS_3DS),
    *(Persona.CARD_FAILS, Persona.IS_DECLINED, Persona.TOPS_UP, Persona.RELOADS),
)
"""The parts, for the orgs in their order; those after them have an operator who refills them."""


@dataclass(frozen=True, slots=True)
class PersonaPlan:
    """An org's part, in cents."""

    org_id: int
    persona: Persona
    start_cents: int
    top_up_cents: int
    minimum_cents: int
    amount_cents: int

    @property
    def monthly_limit_cents(self) -> int | None:
        """What its reloads may take in a month; None is without limit."""
        return self.amount_cents if self.persona is Persona.CAPPED else None


def assign_personas(
    org_ids: Sequence[int], cents_per_s: Mapping[int, float], duration_s: float
) -> dict[int, PersonaPlan]:
    """The first orgs' roles, by org, for calls that start for `duration_s` and cost about so much a second."""
    return {
        org_id: PersonaPlan(
            org_id,
            persona,
            start_cents=_whole_dollars(START_SHARE * cents_per_s[org_id] * duration_s),
            top_up_cents=max(
                _whole_dollars(TOP_UP_SHARE * cents_per_s[org_id] * duration_s), MIN_TOP_UP_CENTS
            ),
            minimum_cents=_whole_dollars(MINIMUM_SHARE * cents_per_s[org_id] * duration_s),
            amount_cents=_whole_dollars(RELOAD_SHARE * cents_per_s[org_id] * duration_s),
        )
        for org_id, persona in zip(org_ids, BILL, strict=False)
    }


def _whole_dollars(cents: float) -> int:
    """The next higher amount of whole dollars, in cents."""
    return (int(cents) // 100 + 1) * 100
