"""What must always be true of the database, as SQL that finds where it isn't (docs/reference/money-rules.md and
docs/reference/auto-reload.md).

The SQL trusts nothing that keeps damage out otherwise: no constraint, index or trigger, and none of the code that wrote the
rows. It must name damage, however wild, and not fail on it: no sum that can overflow, no division by zero.
"""

from typing import Final

from db.audit.invariants.charges import CHARGE_INVARIANTS
from db.audit.invariants.derived import DERIVED_INVARIANTS
from db.audit.invariants.invariant import Invariant
from db.audit.invariants.ledger import LEDGER_INVARIANTS
from db.audit.invariants.payments import PAYMENT_INVARIANTS

INVARIANTS: Final[dict[str, Invariant]] = {
    invariant.name: invariant
    for invariant in (*LEDGER_INVARIANTS, *CHARGE_INVARIANTS, *DERIVED_INVARIANTS, *PAYMENT_INVARIANTS)
}
"""Every invariant, by name."""

__all__ = ["INVARIANTS", "Invariant"]
