"""An invariant."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Invariant:
    """Something that must always be true.

    `sql` gives a row (org_id, transaction_id, detail) for each place where it isn't, in any order; `transaction_id` is NULL
    where the whole org is meant. Each can be pasted into psql as it stands.
    """

    name: str
    meaning: str
    sql: str
