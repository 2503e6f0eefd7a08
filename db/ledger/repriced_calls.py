"""What calls count as billed, and what they would have cost on other terms: worked out by Postgres, org by org.

A call counts as billed at the newest applied re-pricing whose time, org and cut-off cover it, else at its debit
(docs/reference/money-rules.md). The rule of charges is the one of `metering.rules.pricing` and `metering.rules.steps`, in SQL,
where a million calls take a second.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, text

from db.postgres.arrays import array
from metering.rules.repricing import RepricingTerms, whole_months

POSTED_EARLIER_BY: Final = timedelta(days=1)
"""How long before a call's start its debit may have been posted at most, whatever the clocks of meters and producers said."""
HALVING_FROM: Final = 5_000
"""Of a history that is shorter, all is looked at: to halve it (`first_transaction_since`) would take as long."""

_EARLIEST: Final = datetime.min.replace(tzinfo=UTC)
_MICROSECONDS: Final = "interval '1 microsecond'"


@dataclass(frozen=True, slots=True)
class RepricedCalls:
    """One org's calls of a re-pricing's tier and time, as one snapshot has them. None of them, and there is no such row."""

    org_id: int
    newest_transaction_id: int
    calls: int
    billable_seconds: int
    """On the new terms."""
    billed_cents: int
    """What the calls count as billed."""
    repriced_cents: int
    """What they would have cost."""

    @property
    def difference_cents(self) -> int:
        """What the new terms would have cost more than was billed; negative for less."""
        return self.repriced_cents - self.billed_cents


@dataclass(frozen=True, slots=True)
class AppliedTerms:
    """A re-pricing that was applied, to all orgs or some."""

    repricing_id: int
    terms: RepricingTerms


def reprice_calls(
    connection: Connection,
    org_ids: Sequence[int],
    terms: RepricingTerms,
    applied: Sequence[AppliedTerms],
    *,
    transaction_id: int | None = None,
) -> list[RepricedCalls]:
    """Work it out for some orgs, in order; `applied` are all whose time overlaps, in any order; one call alone if it is named.

    One statement, and so one snapshot, whatever the transaction's isolation. Locks nothing. By the primary key, org by org.
    """
    statement = _Statement(terms, applied)
    rows = connection.execute(
        text(statement.sql(one_call=transaction_id is not None)),
        statement.values | {"org_ids": array(org_ids), "transaction_id": transaction_id},
    )
    return [RepricedCalls(*map(int, row)) for row in rows]


def posted_from(started_from: datetime) -> datetime:
    """Before then no debit of a call was posted that started at that time or later."""
    return max(started_from, _EARLIEST + POSTED_EARLIER_BY) - POSTED_EARLIER_BY


class _Statement:
    """The statement for some terms: every number in it is a parameter, and only their places are written here."""

    def __init__(self, terms: RepricingTerms, applied: Sequence[AppliedTerms]) -> None:
        self._applied = sorted(applied, key=lambda each: -each.repricing_id)
        self._all = [terms, *(each.terms for each in self._applied)]
        from_at, until_at = terms.from_at, terms.until_at
        if any(each.steps for each in self._all):
            from_at, until_at = whole_months(from_at, until_at)
        self.values: dict[str, Any] = {
            "tier": terms.tier,
            "look_from": from_at,
            "look_until": until_at,
            "posted_from": posted_from(from_at),
            "halving_from": HALVING_FROM,
        }

    def _value(self, name: str, value: Any, kind: str = "bigint") -> str:
        self.values[name] = value
        return f"CAST(:{name} AS {kind})"

    def sql(self, *, one_call: bool) -> str:
        seconds = ", ".join(self._seconds(at, each) for at, each in enumerate(self._all))
        used = "".join(self._used(at) for at, each in enumerate(self._all) if each.steps)
        billed = " ".join(
            f"WHEN in_{at} AND id <= cutoff_{at} THEN {self._cents(at, each)}"
            for at, each in enumerate(self._all)
            if at
        )
        # Outer joins: an org that an applied re-pricing hasn't come to, or had no calls for, has no cut-off, and is not covered.
        cutoffs = "".join(
            f", done_{at}.cutoff_transaction_id AS cutoff_{at}" for at in range(1, len(self._all))
        )
        joins = "".join(
            f" LEFT JOIN repriced_orgs AS done_{at} ON done_{at}.org_id = accounts.org_id"
            f" AND done_{at}.repricing_id = {self._value(f'repricing_{at}', each.repricing_id)}"
            for at, each in enumerate(self._applied, start=1)
        )
        started_at = f"ended_at - duration_us * {_MICROSECONDS}"
        # MATERIALIZED and OFFSET 0 keep the planner on the primary key, org by org: expecting much of each history to match, it
        # would read the whole table for every page of orgs.
        return f"""
            WITH page AS MATERIALIZED (
                SELECT accounts.org_id, newest.id AS newest_id{cutoffs}, CASE WHEN transaction_count >= :halving_from
                    THEN first_transaction_since(accounts.org_id, CAST(:posted_from AS timestamptz)) ELSE 0 END AS first_id
                FROM unnest(CAST(:org_ids AS bigint[])) AS wanted (org_id)
                JOIN accounts USING (org_id)
                CROSS JOIN LATERAL (
                    SELECT id FROM transactions WHERE transactions.org_id = accounts.org_id
                    ORDER BY transactions.org_id DESC, id DESC LIMIT 1
                ) AS newest{joins}
            )
            SELECT org_id, newest_id, count(*), sum(seconds_0), sum(billed_cents), sum(repriced_cents)
            FROM (
                SELECT org_id, id, newest_id, seconds_0, {self._cents(0, self._all[0])} AS repriced_cents,
                    CASE {billed or "WHEN false THEN 0"} ELSE -amount_cents END AS billed_cents
                FROM (
                    SELECT *{used}
                    FROM (
                        SELECT *, {seconds}
                        FROM (
                            SELECT page.*, debit.*
                            FROM page CROSS JOIN LATERAL (
                                SELECT id, amount_cents, billable_seconds AS as_billed_s, duration_us, increment_first_s,
                                    increment_next_s, minimum_s, connect_fee_microusd, {started_at} AS started_at
                                FROM transactions
                                WHERE transactions.org_id = page.org_id AND id >= page.first_id AND kind = 'debit'
                                    AND tier = :tier AND {started_at} >= CAST(:look_from AS timestamptz)
                                    AND {started_at} < CAST(:look_until AS timestamptz)
                                OFFSET 0
                            ) AS debit
                        ) AS call
                    ) AS call
                ) AS call
                WHERE in_0{" AND id = :transaction_id" if one_call else ""}
            ) AS call
            GROUP BY org_id, newest_id ORDER BY org_id
        """  # noqa: S608 - our own words; values are parameters

    def _seconds(self, at: int, terms: RepricingTerms) -> str:
        """Whether a call is of these terms' time; and its billable seconds on them, or as billed where it isn't."""
        org = "true" if terms.org_id is None else f"org_id = {self._value(f'org_{at}', terms.org_id)}"
        inside = (
            f"({org} AND started_at >= {self._value(f'from_{at}', terms.from_at, 'timestamptz')}"
            f" AND started_at < {self._value(f'until_{at}', terms.until_at, 'timestamptz')})"
        )
        seconds = "as_billed_s"
        if terms.increment is not None or terms.minimum_s is not None:
            first, following, minimum = "increment_first_s", "increment_next_s", "minimum_s"
            if terms.increment is not None:
                first = self._value(f"first_{at}", terms.increment[0])
                following = self._value(f"next_{at}", terms.increment[1])
            if terms.minimum_s is not None:
                minimum = self._value(f"minimum_{at}", terms.minimum_s)
            past_us = f"(greatest(duration_us, {minimum} * 1000000) - {first} * 1000000)"
            seconds = (
                f"CASE WHEN NOT {inside} THEN as_billed_s WHEN {past_us} <= 0 THEN {first}"
                f" ELSE {first} + {following} * (({past_us} - 1) / ({following} * 1000000) + 1) END"
            )
        return f"{inside} AS in_{at}, {seconds} AS seconds_{at}"

    def _used(self, at: int) -> str:
        """What the org had used before, of all of the month's calls in the order of posting. A sum of integers is a bigint."""
        return f""", coalesce(sum(seconds_{at}::integer) OVER (
            PARTITION BY org_id, date_trunc('month', started_at, 'UTC') ORDER BY id
            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ), 0) AS used_{at}"""

    def _cents(self, at: int, terms: RepricingTerms) -> str:
        """The charge: in sixtieths of a micro-USD, of which a cent has 600,000, rounded half up once."""
        fee = "connect_fee_microusd"
        if terms.connect_fee_microusd is not None:
            fee = self._value(f"fee_{at}", terms.connect_fee_microusd)
        return f"(({fee} * 60 + {self._by_rate(at, terms)} + 300000) / 600000)"

    def _by_rate(self, at: int, terms: RepricingTerms) -> str:
        if not terms.steps:
            return f"seconds_{at} * {self._value(f'rate_{at}', terms.rate_microusd_per_minute)}"
        end, low, parts = f"used_{at} + seconds_{at}", "0", []
        for number, step in enumerate(terms.steps):
            rate = self._value(f"rate_{at}_{number}", step.rate_microusd_per_minute)
            high = "" if step.until_s is None else self._value(f"until_{at}_{number}", step.until_s)
            parts.append(
                f"greatest({f'least({end}, {high})' if high else end} - greatest(used_{at}, {low}), 0) * {rate}"
            )
            low = high
        return f"({' + '.join(parts)})"
