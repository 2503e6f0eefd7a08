"""How prices are shown: of tiers, of single orgs, and the ends of those."""

from collections.abc import Sequence
from typing import Any

from db.ledger.prices import SetPrice
from metering.console.output import add_row, say, show_json, show_page, table
from metering.rules.money import format_microusd
from metering.rules.pricing import Price, PriceEnd
from metering.rules.steps import format_steps
from metering.rules.times import format_time


def price_json(price: Price | PriceEnd) -> dict[str, Any]:
    """A price as JSON: money as text, because a JSON number may become a float. A price has either
    a rate or steps; the end of an org's own has no terms."""
    terms: dict[str, Any] = dict.fromkeys(
        ("usd_per_minute", "steps", "increment", "minimum_seconds", "connect_fee_usd")
    )
    if isinstance(price, Price):
        terms = {
            "usd_per_minute": None if price.steps else format_microusd(price.rate_microusd_per_minute),
            "steps": format_steps(price.steps) if price.steps else None,
            "increment": f"{price.increment_first_s}/{price.increment_next_s}",
            "minimum_seconds": price.minimum_s,
            "connect_fee_usd": format_microusd(price.connect_fee_microusd),
        }
    return {"tier": price.tier, "org_id": price.org_id, **terms, "in_force_from": price.in_force_from}


def price_terms(price: Price | PriceEnd) -> dict[str, Any]:
    """What the log keeps of a price: it names the tier and the org by itself."""
    start = price.in_force_from
    fields = price_json(price) | {"in_force_from": None if start is None else format_time(start)}
    return {key: value for key, value in fields.items() if key not in ("tier", "org_id")}


def price_details(done: SetPrice) -> dict[str, Any]:
    """What the log keeps of what was set."""
    replaced = {} if done.replaced is None else {"replaced": price_terms(done.replaced)}
    return price_terms(done.price) | replaced


def show_set_price(done: SetPrice, *, as_json: bool) -> None:
    """Say what was set."""
    if as_json:
        show_json(
            {
                **price_json(done.price),
                "changed": done.changed,
                "replaced": None if done.replaced is None else price_json(done.replaced),
                "followed_by": None if done.followed_by is None else price_json(done.followed_by),
            }
        )
        return
    counts = what_counts(done.price)
    say(
        f"{counts[0].upper()}{counts[1:]}."
        if done.changed
        else f"Nothing changed: {counts}, as was set before."
    )
    if done.replaced is not None:
        say(f"That replaces what was set for then: {what_counts(done.replaced)}.")
    if done.followed_by is not None:
        price = done.followed_by
        shows = (
            "`metering tier list`" if price.org_id is None else f"`metering tier list --org {price.org_id}`"
        )
        say(
            f"Another {'price' if isinstance(price, Price) else 'change'} follows: {what_counts(price)}. It was set before, and"
            f" stays ({shows} shows all)."
        )


def what_counts(price: Price | PriceEnd) -> str:
    """A price, or the end of an org's, in words."""
    since = "since ever" if price.in_force_from is None else f"from {format_time(price.in_force_from)} on"
    if isinstance(price, PriceEnd):
        return f"org {price.org_id} pays what all pay for tier {price.tier}, {since}"
    fields = price_json(price)
    extras = [f"in increments of {fields['increment']} s"]
    if price.minimum_s:
        extras.append(f"at least {price.minimum_s} s")
    if price.connect_fee_microusd:
        extras.append(f"plus ${fields['connect_fee_usd']} per call")
    whom = "" if price.org_id is None else f" org {price.org_id}"
    return f"tier {price.tier} costs{whom} {rates(price)} per minute, {', '.join(extras)}, {since}"


def rates(price: Price) -> str:
    """What a minute costs, in words: "$0.08", or by steps "nothing up to 500 minutes of the month, then $0.05"."""
    words = [
        (f"${format_microusd(step.rate_microusd_per_minute)}" if step.rate_microusd_per_minute else "nothing")
        + ("" if step.until_s is None else f" up to {step.until_s // 60} minutes of the month")
        for step in price.steps
    ]
    return ", then ".join(words) or f"${format_microusd(price.rate_microusd_per_minute)}"


def show_prices(prices: Sequence[Price | PriceEnd], *, of_orgs: bool) -> None:
    """As a table; `of_orgs` says whose each is."""
    whose = (">org",) if of_orgs else ()
    shown = table(
        "tier", *whose, ">USD per minute", "increment", ">minimum s", ">connect fee USD", "in force from"
    )
    for price in prices:
        fields = price_json(price)
        terms = [
            fields[each] for each in ("usd_per_minute", "increment", "minimum_seconds", "connect_fee_usd")
        ]
        if fields["steps"] is not None:
            terms[0] = " ".join(fields["steps"])
        if isinstance(price, PriceEnd):
            terms = ["the tier's", "", "", ""]
        add_row(
            shown, [price.tier, *([price.org_id] if of_orgs else []), *terms, price.in_force_from or "ever"]
        )
    show_page(shown, "price", offset=0, total=len(prices))
