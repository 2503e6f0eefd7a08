"""`metering call list --lapsed` and `metering call dismiss`: calls whose time is over and whose event has not come."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from metering.console.errors import CommandError
from metering.console.output import JsonOption, add_row, say, show_json, show_list, show_table, table
from metering.console.values import MAX_REASON_CHARS, OrgArgument, id_value, text_value
from metering.rules.times import format_time, from_milliseconds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from metering.signals.holds import Hold, Holds


def list_lapsed(org: int | None, *, limit: int, as_json: bool) -> None:
    """List lapsed calls of an org, or of all, the longest lapsed first."""
    from metering.console.connections import open_database, open_redis
    from metering.rules.hold_terms import decode_terms
    from metering.rules.money import format_usd
    from metering.signals.holds import Holds

    if org is not None:
        id_value("ORG", org)
    # The database is asked for nothing: a token that is set must be good all the same.
    with open_database(command="call list"), open_redis() as client:
        found = sorted(
            _lapsed(Holds(client), org), key=lambda hold: (hold.ends_ms, hold.org_id, hold.call_id)
        )
    if as_json:
        show_list([_shape(hold) for hold in found[:limit]], len(found))
        return
    if not found:
        say("There are no lapsed calls.")
        return
    shown = table(">org", ">call", "held since", "lapsed", "tier", "direction", ">USD held")
    for hold in found[:limit]:
        terms = decode_terms(hold.terms)
        about = (None, None) if terms is None else (terms.tier, terms.direction)
        times = from_milliseconds(hold.since_ms), from_milliseconds(hold.ends_ms)
        add_row(shown, [hold.org_id, hold.call_id, *times, *about, format_usd(hold.cents)])
    show_table(shown)
    if len(found) > limit:
        say(f"{limit} of {len(found):,} in all; --limit shows more.")


def dismiss(
    org: OrgArgument,
    call_id: Annotated[int, typer.Argument(metavar="CALL_ID", help="The call's id.", show_default=False)],
    reason: Annotated[
        str, typer.Option(metavar="TEXT", help="Why, in words: kept, with your name.", show_default=False)
    ],
    as_json: JsonOption = False,
) -> None:
    """Hold nothing more for a lapsed call. If its event comes after all, it is billed."""
    from db.operators.log import log_action
    from db.postgres.engine import transaction
    from metering.console.connections import open_database, open_redis
    from metering.console.operators import require_operator
    from metering.rules.money import format_usd
    from metering.signals.holds import Holds

    id_value("ORG", org)
    id_value("CALL_ID", call_id)
    text_value("reason", reason, max_chars=MAX_REASON_CHARS)
    with open_database(command="call dismiss") as engine, open_redis() as client:
        actor = require_operator(engine, "call dismiss", org_id=org)
        holds = Holds(client)
        hold = next((each for each in _lapsed(holds, org) if each.call_id == call_id), None)
        if hold is None:
            raise CommandError(_not_lapsed(holds, org, call_id))
        # First the log: what is dismissed must not be without a name.
        with transaction(engine) as connection:
            log_action(
                connection,
                actor,
                "call dismiss",
                org_id=org,
                subject=str(call_id),
                reason=reason,
                details={
                    "held_cents": hold.cents,
                    "held_since": format_time(from_milliseconds(hold.since_ms)),
                    "lapsed_at": format_time(from_milliseconds(hold.ends_ms)),
                },
            )
        dismissed = holds.dismiss(org, call_id)
    if dismissed is None:
        raise CommandError(
            f"CALL_ID: call {call_id} of org {org} has ended or been renewed just now; nothing was dismissed."
        )
    if as_json:
        show_json(_shape(dismissed))
    else:
        say(
            f"Nothing is held any more for call {call_id} of org {org}; it was {format_usd(dismissed.cents)} USD."
            " If its event comes, it is billed."
        )


def _lapsed(holds: "Holds", org: int | None) -> "Iterator[Hold]":
    pages = [[org]] if org is not None else holds.org_ids()
    seen: set[int] = set()
    for page in pages:
        for org_id in page:
            if org_id not in seen:
                seen.add(org_id)
                held = holds.calls(org_id)
                yield from (hold for hold in held.holds if hold.lapsed(held.now_ms))


def _not_lapsed(holds: "Holds", org: int, call_id: int) -> str:
    hold = holds.find(org, call_id)
    if hold is not None:
        until = format_time(from_milliseconds(hold.ends_ms))
        return (
            f"CALL_ID: call {call_id} of org {org} has not lapsed: it may run until {until}."
            " Only lapsed calls can be dismissed."
        )
    return f"CALL_ID: nothing is held for call {call_id} of org {org}; `metering call list --lapsed` lists lapsed calls."


def _shape(hold: "Hold") -> dict[str, Any]:
    from metering.rules.hold_terms import decode_terms

    terms = decode_terms(hold.terms)
    return {
        "org_id": hold.org_id,
        "call_id": hold.call_id,
        "tier": None if terms is None else terms.tier,
        "direction": None if terms is None else terms.direction,
        "max_duration_seconds": None if terms is None else terms.max_duration_s,
        "held_cents": hold.cents,
        "held_since": from_milliseconds(hold.since_ms),
        "lapsed_at": from_milliseconds(hold.ends_ms),
    }
