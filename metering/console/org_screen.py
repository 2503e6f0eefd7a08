"""What `metering org show` shows: one org on one screen."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import date, datetime
from typing import Any, Final

from db.accounts.org_overview import OrgOverview
from metering.console.operator_log import log_cells, log_json
from metering.console.output import add_row, counted, say, show_fields, show_table, table
from metering.console.reload_status import lifted_by
from metering.rules.gates import Balance, gate_state
from metering.rules.money import format_microusd, format_usd
from metering.rules.pricing import Price, PriceBook
from metering.rules.steps import format_steps
from metering.rules.times import format_time
from metering.signals.gates import Gate
from metering.signals.holds import HeldTotals

MAX_PRICES: Final = 20
"""How many tiers are shown at most; `metering tier list` has all."""


@dataclass(frozen=True, slots=True)
class OrgScreen:
    """An org as Postgres has it, the prices that there are, and its gate as Redis has it; None where it can't be asked."""

    org: OrgOverview
    book: PriceBook
    gate: Gate | None
    now: datetime
    used: Mapping[str, int]
    """By tier whose price has steps: billable seconds of this month."""
    held: HeldTotals | None = None
    """What its calls hold; None where Redis can't be asked."""

    @property
    def _state(self) -> str:
        account = self.org.account
        return gate_state(account.balance_cents, suspended=account.suspended_at is not None).value

    def json(self) -> dict[str, Any]:
        """For programs."""
        org, account = self.org, self.org.account
        return {
            "org_id": account.org_id,
            "name": account.name,
            "created_at": account.created_at,
            "balance_cents": account.balance_cents,
            "transaction_count": account.transaction_count,
            "version": account.version,
            "state": self._state,
            "max_concurrent_calls": account.max_concurrent_calls,
            "held": None
            if self.held is None
            else {
                "held_cents": self.held.held_cents,
                "available_cents": account.balance_cents - self.held.held_cents,
                "running_calls": self.held.running_calls,
                "lapsed_calls": self.held.lapsed_calls,
            },
            "state_since": org.state_since,
            "state_since_earlier": org.since_earlier,
            "gate": None if self.gate is None else asdict(self.gate),
            "gate_follows": None if self.gate is None else self._follows(self.gate),
            "auto_reload": {
                "enabled": account.auto_reload_enabled,
                "minimum_cents": account.auto_reload_minimum_cents,
                "amount_cents": account.auto_reload_amount_cents,
                "monthly_limit_cents": account.auto_reload_monthly_limit_cents,
                "month_left_cents": org.charges.month_left_cents,
                "attempts_open": org.charges.attempts_open,
                "stops": [asdict(each) | {"lifted_by": lifted_by(each)} for each in org.stops],
            },
            "stripe_customer_id": account.stripe_customer_id,
            "cards": [
                {
                    "payment_method_id": each.payment_method_id,
                    "default": each.payment_method_id == account.default_payment_method_id,
                    "ready_at": each.ready_at,
                }
                for each in org.cards
            ],
            "keys": [
                {
                    "key_id": each.id,
                    "name": each.name,
                    "hint": each.hint,
                    "last_used_at": each.last_used_at,
                    "expires_at": each.expires_at,
                }
                for each in org.keys
            ],
            "prices": [
                {
                    "tier": tier,
                    "usd_per_minute": None
                    if price.steps
                    else format_microusd(price.rate_microusd_per_minute),
                    "steps": format_steps(price.steps) if price.steps else None,
                    "used_seconds": self.used.get(tier, 0) if price.steps else None,
                    "increment": f"{price.increment_first_s}/{price.increment_next_s}",
                    "minimum_seconds": price.minimum_s,
                    "connect_fee_usd": format_microusd(price.connect_fee_microusd),
                    "in_force_from": price.in_force_from,
                    "is_own": price.org_id is not None,
                }
                for tier, price in self._prices()
            ],
            "usage": [
                {
                    "month": f"{month:%Y-%m}",
                    "tier": tier,
                    "calls": calls,
                    "billable_seconds": seconds,
                    "billed_cents": cents,
                }
                for month, tier, calls, seconds, cents in self._usage()
            ],
            "transactions": [dict(row._mapping) for row in org.transactions],  # noqa: SLF001 - the row's public way to names
            "rejected": [
                {
                    "id": each.id,
                    "reason": each.reason,
                    "detail": each.detail,
                    "received_at": each.received_at,
                    "replayed_at": each.replayed_at,
                    "dismissed_at": each.dismissed_at,
                }
                for each in org.rejected
            ],
            "log": [log_json(entry) for entry in org.log],
        }

    def show(self) -> None:
        """For people."""
        account = self.org.account
        show_fields(f"Org {account.org_id}: {account.name}", self._fields())
        self._show_prices()
        self._show_usage()
        self._show_transactions()
        self._show_rejected()
        self._show_log()

    def _fields(self) -> Iterator[tuple[str, object]]:
        org, account = self.org, self.org.account
        yield (
            "balance",
            f"{format_usd(account.balance_cents)} USD, after {account.transaction_count:,} transactions",
        )
        yield "gate", self._gate()
        if self.held is not None and (self.held.running_calls or self.held.lapsed_calls):
            yield "held", self._held(self.held)
        if account.max_concurrent_calls is not None:
            yield "calls at once", f"{account.max_concurrent_calls:,} at most, of those that take holds"
        yield "auto-reload", self._reload()
        for stop in org.stops:
            yield (
                "  paused" if stop.paused else "  waits",
                f"{stop.code}, since {format_time(stop.since)}; lifted by {lifted_by(stop)}",
            )
        if org.charges.attempts_open:
            yield "  open charges", org.charges.attempts_open
        for card in org.cards:
            default = ", default" if card.payment_method_id == account.default_payment_method_id else ""
            yield "card", f"{card.payment_method_id}{default}, saved {format_time(card.ready_at)}"
        if not org.cards:
            yield "card", "none"
        for key in org.keys:
            named = "" if key.name is None else f" ({key.name})"
            used = "not used" if key.last_used_at is None else f"last used {format_time(key.last_used_at)}"
            ends = "" if key.expires_at is None else f", ends {format_time(key.expires_at)}"
            yield "key", f"{key.id}{named}, ends with {key.hint}, {used}{ends}"
        if not org.keys:
            yield "key", "none"
        yield "customer", account.stripe_customer_id
        yield "made", account.created_at

    def _held(self, held: HeldTotals) -> str:
        available_cents = self.org.account.balance_cents - held.held_cents
        return (
            f"{format_usd(held.held_cents)} USD for {held.running_calls:,} running and {held.lapsed_calls:,} lapsed calls;"
            f" available {format_usd(available_cents)} USD"
        )

    def _gate(self) -> str:
        """The gate, since when, and whether Redis has it as it is to be."""
        before = "before " if self.org.since_earlier else ""
        said = f"{self._state} since {before}{format_time(self.org.state_since)}"
        if self.gate is None:
            return f"{said}, says Postgres; Redis can't be asked"
        if self._follows(self.gate):
            return f"{said}; Redis has it so"
        held = "no gate" if self.gate.state is None else f"{self.gate.state} at version {self.gate.version}"
        return (
            f"{said}, says Postgres, at version {self.org.account.version}; Redis has {held}."
            " `metering jobs` mends it within seconds"
        )

    def _follows(self, gate: Gate) -> bool:
        account = self.org.account
        return gate.follows(
            Balance(
                account.org_id,
                account.balance_cents,
                account.version,
                account.suspended_at is not None,
                account.max_concurrent_calls,
            )
        )

    def _reload(self) -> str:
        account = self.org.account
        if account.auto_reload_minimum_cents is None or account.auto_reload_amount_cents is None:
            return "off, never set"
        said = (
            f"{'on' if account.auto_reload_enabled else 'off'}: {format_usd(account.auto_reload_amount_cents)} USD when below"
            f" {format_usd(account.auto_reload_minimum_cents)}"
        )
        limit, left = account.auto_reload_monthly_limit_cents, self.org.charges.month_left_cents
        if limit is None or left is None:
            return f"{said}, no monthly limit"
        return f"{said}, at most {format_usd(limit)} a month, {format_usd(left)} left"

    def _prices(self) -> list[tuple[str, Price]]:
        prices = (
            (tier, self.book.in_force(tier, self.org.account.org_id, self.now)) for tier in self.book.tiers()
        )
        return [(tier, price) for tier, price in prices if price is not None]

    def _show_prices(self) -> None:
        prices = self._prices()
        shown = table("price now", ">USD per minute", "increment", "in force from")
        for tier, price in prices[:MAX_PRICES]:
            rate = (
                " ".join(format_steps(price.steps))
                if price.steps
                else format_microusd(price.rate_microusd_per_minute)
            )
            increment = f"{price.increment_first_s}/{price.increment_next_s}"
            since = "ever" if price.in_force_from is None else format_time(price.in_force_from)
            add_row(
                shown, [tier, rate, increment, since if price.org_id is None else f"{since}, the org's own"]
            )
        if prices:
            show_table(shown)
        for tier, seconds in self.used.items():
            say(f"{counted(seconds // 60, 'minute')} of {tier} used this month.")
        if len(prices) > MAX_PRICES:
            say(f"{MAX_PRICES} of {len(prices)} tiers; `metering tier list` shows all.")

    def _usage(self) -> list[tuple[date, str, int, int, int]]:
        """By month and tier: calls, billable seconds, cents billed; the newest month first."""
        sums: dict[tuple[date, str], tuple[int, int, int]] = {}
        for each in self.org.usage:
            key = (each.day.replace(day=1), each.tier)
            calls, seconds, cents = sums.get(key, (0, 0, 0))
            sums[key] = (
                calls + each.calls,
                seconds + each.billable_seconds,
                cents + each.billed_cents,
            )
        newest_first = sorted(sums, key=lambda key: (-key[0].toordinal(), key[1]))
        return [(*key, *sums[key]) for key in newest_first]

    def _show_usage(self) -> None:
        shown = table("calls of", "tier", ">calls", ">minutes", ">billed USD")
        for month, tier, calls, seconds, cents in self._usage():
            minutes = f"{seconds // 60:,}" if seconds % 60 == 0 else f"{seconds / 60:,.1f}"
            add_row(shown, [f"{month:%Y-%m}", tier, f"{calls:,}", minutes, format_usd(cents)])
        if shown.row_count:
            show_table(shown)

    def _show_transactions(self) -> None:
        shown = table("last transactions", ">USD", ">balance after", "what")
        for row in self.org.transactions:
            what = row.description if row.call_id is None else f"{row.description} (call {row.call_id})"
            amounts = format_usd(row.amount_cents), format_usd(row.balance_after_cents)
            add_row(shown, [row.created_at, *amounts, what])
        if self.org.transactions:
            show_table(shown)

    def _show_rejected(self) -> None:
        shown = table(">rejected", "received", "why", "now")
        for event in self.org.rejected:
            now = "replayed" if event.replayed_at else "dismissed" if event.dismissed_at else "waits"
            add_row(shown, [event.id, event.received_at, f"{event.reason}: {event.detail}", now])
        if self.org.rejected:
            show_table(shown)

    def _show_log(self) -> None:
        shown = table("operators did", "who", "what", "to", "why")
        for entry in self.org.log:
            at, who, did, _, subject, _, why = log_cells(entry)
            add_row(shown, [at, who, did, subject, why])
        if self.org.log:
            show_table(shown)
