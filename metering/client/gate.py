"""A gate, as it was read."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gate:
    """Whether an org's new calls may start, inbound and outbound alike. All None where the org has no gate."""

    org_id: int
    state: str | None
    """`open`, `exhausted`, or `suspended`: by the operator of the billing, whatever the balance."""
    balance_cents: int | None
    """Whole US cents; what runs at the moment isn't charged yet."""
    version: int | None
    """Rises with every change of the balance."""

    @property
    def open(self) -> bool:
        """Only this lets a call start: a gate that is missing, or says anything else, is not open."""
        return self.state == "open"
