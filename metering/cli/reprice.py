"""`metering reprice`."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from metering.cli.gates import follow_gates
from metering.console.errors import CommandError
from metering.console.output import JsonOption, counted, progress_bar, say
from metering.console.values import MAX_KEY_CHARS, MAX_REASON_CHARS, id_value, text_value, time_value

if TYPE_CHECKING:
    import redis
    from sqlalchemy import Engine

    from db.attempts.reload_rule import Reloads
    from db.models import Repricing
    from db.operators.log import Actor
    from metering.console.repricing_screen import OrgLine, Totals
    from metering.rules.repricing import RepricingTerms

T = TypeVar("T")


def reprice(
    tier: Annotated[str, typer.Option(metavar="NAME", help="The tier, such as bolt.", show_default=False)],
    from_: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="TIME",
            help="Calls that started at this time or later: ISO 8601 with an offset.",
            show_default=False,
        ),
    ],
    to: Annotated[
        str,
        typer.Option(metavar="TIME", help="Calls that started before this time.", show_default=False),
    ],
    price: Annotated[
        str | None,
        typer.Option(
            metavar="USD_PER_MINUTE",
            help="What a minute is to cost, at most 6 decimals, such as 0.07.",
            show_default=False,
        ),
    ] = None,
    step: Annotated[
        list[str] | None,
        typer.Option(
            metavar="UP_TO:RATE",
            help="Instead of --price, once for each step, in order: `--step 500:0 --step :0.07` are 500 minutes of the month "
            "included, then $0.07.",
            show_default=False,
        ),
    ] = None,
    increment: Annotated[
        str | None,
        typer.Option(
            metavar="FIRST/NEXT",
            help="Another billing increment; unset, as each call was billed.",
            show_default=False,
        ),
    ] = None,
    minimum: Annotated[
        int | None,
        typer.Option(
            metavar="SECONDS", help="Another minimum; unset, as each call was billed.", show_default=False
        ),
    ] = None,
    connect_fee: Annotated[
        str | None,
        typer.Option(
            metavar="USD", help="Another connect fee; unset, as each call was billed.", show_default=False
        ),
    ] = None,
    org: Annotated[
        int | None, typer.Option(metavar="ORG", help="Only this org's calls.", show_default=False)
    ] = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Write one adjustment for each org that has a difference.")
    ] = False,
    key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="With --apply, any text of your own: the same key goes on where it ended, and adjusts no org twice.",
            show_default=False,
        ),
    ] = None,
    reason: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="With --apply, why; customers read it as the adjustment's description.",
            show_default=False,
        ),
    ] = None,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print CSV instead of text: a line for each org.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what calls of a past time would have cost at another price; with --apply, adjust each org by the difference.

    Debits stay as they are. A call counts as billed at the newest re-pricing that covers it, else at its debit; adjustments and
    refunds don't count. Without --apply nothing is written.
    """
    from metering.console.connections import open_database
    from metering.console.operators import check_token, require_operator

    terms = _terms(
        tier, from_, to, org, price, step or [], increment=increment, minimum=minimum, connect_fee=connect_fee
    )
    if as_csv and as_json:
        raise CommandError("csv: choose one of --csv and --json.")
    if not apply:
        if key is not None or reason is not None:
            raise CommandError("key: --key and --reason go with --apply; without it nothing is written.")
        with open_database(command="reprice") as engine:
            check_token(engine)
            _show(engine, terms, as_csv=as_csv, as_json=as_json)
        return
    if key is None or reason is None:
        raise CommandError("key: --apply needs --key and --reason.")
    text_value("key", key, max_chars=MAX_KEY_CHARS)
    text_value("reason", reason, max_chars=MAX_REASON_CHARS)
    with open_database(command="reprice") as engine:
        actor = require_operator(engine, "reprice", org_id=org)
        repricing, new = _apply(engine, terms, key, reason, actor)
        _show_applied(engine, repricing, terms, new=new, as_csv=as_csv, as_json=as_json)


def _terms(
    tier: str,
    from_: str,
    to: str,
    org_id: int | None,
    price: str | None,
    steps: list[str],
    *,
    increment: str | None,
    minimum: int | None,
    connect_fee: str | None,
) -> "RepricingTerms":
    from metering.rules.money import parse_usd
    from metering.rules.pricing import MAX_MINIMUM_S, parse_increment
    from metering.rules.repricing import RepricingTerms
    from metering.rules.steps import parse_steps

    if (price is None) == (not steps):
        raise CommandError("price: say with --price what a minute is to cost, or each step with --step.")
    if org_id is not None:
        id_value("org", org_id)
    parsed = _parsed("step", parse_steps, steps) if steps else ()
    rate = parsed[-1].rate_microusd_per_minute if price is None else _parsed("price", parse_usd, price)
    if minimum is not None and not 0 <= minimum <= MAX_MINIMUM_S:
        raise CommandError(f"minimum: must be from 0 to {MAX_MINIMUM_S} seconds.")
    try:
        return RepricingTerms(
            tier=tier,
            from_at=time_value("from", from_),
            until_at=time_value("to", to),
            org_id=org_id,
            rate_microusd_per_minute=rate,
            steps=parsed if len(parsed) > 1 else (),  # a single one is a price
            increment=None if increment is None else _parsed("increment", parse_increment, increment),
            minimum_s=minimum,
            connect_fee_microusd=None
            if connect_fee is None
            else _parsed("connect-fee", parse_usd, connect_fee),
        )
    except ValueError as error:
        raise CommandError(f"{error}.") from error


def _parsed(name: str, parse: Callable[[Any], T], value: Any) -> T:
    """What `parse` makes of `value`; its ValueError says the rule, and this the name."""
    try:
        return parse(value)
    except ValueError as error:
        raise CommandError(f"{name}: {error}.") from error


def _show(engine: "Engine", terms: "RepricingTerms", *, as_csv: bool, as_json: bool) -> None:
    from db.ledger.repricing_passes import show_repricing
    from metering.console.repricing_screen import OrgLine
    from metering.rules.times import format_time

    with show_repricing(engine, terms) as snapshot, progress_bar("transactions") as bar:
        task = bar.add_task("re-pricing", total=None, count=0)

        def lines() -> Iterator[OrgLine]:
            for page, progress in snapshot.pages:
                bar.update(task, total=progress.total, completed=progress.done, count=progress.done)
                for each in page:
                    yield OrgLine(
                        each.org_id,
                        each.calls,
                        each.billable_seconds,
                        each.billed_cents,
                        each.repriced_cents,
                    )

        _print(lines(), terms, {"taken_at": snapshot.taken_at}, as_csv=as_csv, as_json=as_json, applied=False)
    if not (as_csv or as_json):
        say(
            f"From a snapshot of {format_time(snapshot.taken_at)}. Nothing was written; --apply with --key and --reason adjusts"
            " each org by its difference."
        )


def _apply(
    engine: "Engine", terms: "RepricingTerms", key: str, reason: str, actor: "Actor"
) -> "tuple[Repricing, bool]":
    """See to every org that was not seen to before; give the re-pricing, and whether anything was left to do."""
    from db.ledger.repricing_passes import apply_repricing
    from db.ledger.repricings import begin_repricing
    from db.postgres.engine import transaction

    with transaction(engine) as connection:
        repricing = begin_repricing(connection, terms, key=key, reason=reason, actor=actor)
    new = repricing.finished_at is None
    with progress_bar("transactions") as bar:
        task = bar.add_task("re-pricing", total=None, count=0)
        for done in apply_repricing(engine, repricing, actor=actor):
            progress = done.progress
            bar.update(task, total=progress.total, completed=progress.done, count=progress.done)
            if done.changes:
                follow_gates(
                    [change.balance for change in done.changes], partial(_follow, engine, done.reloads)
                )
    return repricing, new


def _follow(engine: "Engine", reloads: "Reloads", client: "redis.Redis") -> None:
    from workers.reload_follower import ReloadFollower

    ReloadFollower(engine, client).follow(reloads)


def _show_applied(
    engine: "Engine",
    repricing: "Repricing",
    terms: "RepricingTerms",
    *,
    new: bool,
    as_csv: bool,
    as_json: bool,
) -> None:
    from db.ledger.repricings import list_repriced_orgs
    from metering.console.repricing_screen import OrgLine

    with engine.connect() as connection:
        lines = (
            OrgLine(
                row.org_id,
                row.calls,
                row.billable_seconds,
                row.billed_cents,
                row.repriced_cents,
                row.transaction_id,
            )
            for row in list_repriced_orgs(connection, repricing.id)
        )
        said = {"key": repricing.key, "reason": repricing.reason, "applied": new}
        totals = _print(lines, terms, said, as_csv=as_csv, as_json=as_json, applied=True)
    if as_csv or as_json:
        return
    if new:
        say(f"{counted(totals.adjustments, 'org')} adjusted, by the key {repricing.key}.")
    else:
        say(
            f"Nothing changed: the key {repricing.key} has adjusted {counted(totals.adjustments, 'org')} before."
        )


def _print(
    lines: "Iterator[OrgLine]",
    terms: "RepricingTerms",
    said: dict[str, Any],
    *,
    as_csv: bool,
    as_json: bool,
    applied: bool,
) -> "Totals":
    from metering.console.repricing_screen import Totals, show_as_json, show_as_table, show_csv

    totals = Totals()
    counted_lines = totals.counting(lines)
    if as_csv:
        show_csv(counted_lines, applied=applied)
    elif as_json:
        show_as_json(counted_lines, totals, terms, said, applied=applied)
    else:
        show_as_table(counted_lines, totals, applied=applied)
    return totals
