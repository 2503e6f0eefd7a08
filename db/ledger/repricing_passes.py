"""Passes of a re-pricing over all orgs: shown from one snapshot, or applied org by org, once per key.

See docs/reference/commands.md#metering-reprice.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import ColumnElement, Connection, Engine, func, insert, select, update

from db.attempts.reload_rule import Reloads, ask_reload_rule
from db.ledger.post_calls import BalanceChange, lock_accounts, write_accounts
from db.ledger.postings import post
from db.ledger.repriced_calls import RepricedCalls, posted_from, reprice_calls
from db.ledger.repricings import BEFORE_ALL, COMMAND, adjustment_key, applied_terms, check_terms, terms_of
from db.models import Account, Kind, RepricedOrg, Repricing
from db.models.errors import UnknownOrgError
from db.operators.log import Actor, log_action
from db.postgres.clock import read_clock
from db.postgres.engine import driver_connection, transaction
from metering.rules.repricing import RepricingTerms, whole_months
from metering.runtime.crashpoints import CrashPoint, reach

ORGS_AT_ONCE: Final = 2_000
TRANSACTIONS_AT_ONCE: Final = 500_000
"""About how many transactions one page of orgs has: those of a single org are never parted."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it has come, in transactions of the orgs that are to be looked at."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One snapshot of the ledger: pages of orgs that have calls of the re-pricing's tier and time, in order."""

    taken_at: datetime
    pages: Iterator[tuple[list[RepricedCalls], Progress]]


@contextmanager
def show_repricing(engine: Engine, terms: RepricingTerms) -> Iterator[Snapshot]:
    """Work it out, from one snapshot of the database while others go on writing; writes nothing, and locks nothing.

    Raises RepricingError for a tier that isn't there, UnknownOrgError.
    """
    # Not db.postgres.engine.transaction: the level is to be set before anything is read, and there is nothing to commit.
    with engine.connect().execution_options(
        isolation_level="REPEATABLE READ", postgresql_readonly=True
    ) as connection:
        check_terms(connection, terms)
        taken_at = read_clock(connection)
        yield Snapshot(taken_at, _results(connection, terms))


def _results(connection: Connection, terms: RepricingTerms) -> Iterator[tuple[list[RepricedCalls], Progress]]:
    applied = applied_terms(connection, terms)
    for org_ids, progress in _pages(connection, terms):
        yield reprice_calls(connection, org_ids, terms, applied), progress


@dataclass(frozen=True, slots=True)
class Adjusted:
    """Orgs that were adjusted just now, for their gates and reloads to follow."""

    changes: list[BalanceChange]
    reloads: Reloads
    progress: Progress


def apply_repricing(
    engine: Engine, repricing: Repricing, *, actor: Actor, follow_every: int = 100
) -> Generator[Adjusted]:
    """Adjust each org that has a difference and was not seen to before, each in a transaction of its own; then note the end.

    What an org's calls come to is worked out before its lock is taken: its cut-off is the newest transaction of that snapshot,
    and what is posted meanwhile is later. So no lock lasts longer than an adjustment's. After a crash the same goes on.
    """
    terms = terms_of(repricing)
    if repricing.finished_at is not None:
        return
    waiting = Adjusted([], Reloads(), Progress(0, 0))
    with transaction(engine) as connection:
        pages = list(_pages(connection, terms))
        applied = [
            each
            for each in applied_terms(connection, terms)
            if each.repricing_id < repricing.id  # a later one has no org's calls before this one's end
        ]
    for org_ids, progress in pages:
        with transaction(engine) as connection:
            done = select(RepricedOrg.org_id).where(
                RepricedOrg.repricing_id == repricing.id, RepricedOrg.org_id.in_(org_ids)
            )
            seen_to = set(connection.scalars(done))
            left = [org_id for org_id in org_ids if org_id not in seen_to]
            results = reprice_calls(connection, left, terms, applied)
        waiting = Adjusted(waiting.changes, waiting.reloads, progress)
        for calls in results:
            change, reloads = _adjust(engine, repricing, calls, actor)
            reach(CrashPoint.REPRICE_AFTER_ORG)
            if change is not None:
                waiting.changes.append(change)
                waiting.reloads.add(reloads)
            if len(waiting.changes) >= follow_every:
                yield waiting
                waiting = Adjusted([], Reloads(), progress)
        yield waiting
        waiting = Adjusted([], Reloads(), progress)
    with transaction(engine) as connection:
        end = update(Repricing).where(Repricing.id == repricing.id, Repricing.finished_at.is_(None))
        connection.execute(end.values(finished_at=func.metering_now()))


def _adjust(
    engine: Engine, repricing: Repricing, calls: RepricedCalls, actor: Actor
) -> tuple[BalanceChange | None, Reloads]:
    """See to one org: its row, and its adjustment, if there is a difference. None where that was done already."""
    with transaction(engine) as connection:
        # Shared with other processes that apply the same; whoever notes the end waits for all of them, and none comes after it.
        going_on = select(Repricing.id).where(Repricing.id == repricing.id, Repricing.finished_at.is_(None))
        if connection.scalar(going_on.with_for_update(read=True)) is None:
            return None, Reloads()
        driver = driver_connection(connection)
        account = lock_accounts(driver, [calls.org_id]).get(calls.org_id)
        if account is None:
            raise UnknownOrgError(calls.org_id)
        done = select(RepricedOrg.org_id).where(
            RepricedOrg.repricing_id == repricing.id, RepricedOrg.org_id == calls.org_id
        )
        if connection.scalar(done) is not None:
            return None, Reloads()
        transaction_id = None
        amount_cents = -calls.difference_cents
        if amount_cents:
            transaction_id = post(
                connection,
                account,
                kind=Kind.ADJUSTMENT,
                amount_cents=amount_cents,
                description=repricing.reason,
                source_key=adjustment_key(repricing),
            )
        connection.execute(
            insert(RepricedOrg).values(
                repricing_id=repricing.id,
                org_id=calls.org_id,
                cutoff_transaction_id=calls.newest_transaction_id,
                calls=calls.calls,
                billable_seconds=calls.billable_seconds,
                billed_cents=calls.billed_cents,
                repriced_cents=calls.repriced_cents,
                transaction_id=transaction_id,
            )
        )
        if transaction_id is None:
            return None, Reloads()
        log_action(
            connection,
            actor,
            COMMAND,
            org_id=calls.org_id,
            subject=repricing.key,
            reason=repricing.reason,
            details={
                "amount_cents": amount_cents,
                "transaction_id": transaction_id,
                "balance_after_cents": account.balance_cents,
            },
        )
        write_accounts(driver, [account])
        return account, ask_reload_rule(connection, {calls.org_id: account.now})


def _pages(connection: Connection, terms: RepricingTerms) -> Iterator[tuple[list[int], Progress]]:
    """Orgs that may have such calls, in order, each page with a bounded number of transactions unless one org has more."""
    look_from = whole_months(terms.from_at, terms.until_at)[0]
    wanted: list[ColumnElement[bool]] = [Account.last_posted_at >= posted_from(look_from)]
    if terms.org_id is not None:
        wanted.append(Account.org_id == terms.org_id)
    total = int(
        connection.scalar(select(func.coalesce(func.sum(Account.transaction_count), 0)).where(*wanted)) or 0
    )
    after, done = BEFORE_ALL, 0
    while True:
        rows = connection.execute(
            select(Account.org_id, Account.transaction_count)
            .where(Account.org_id > after, *wanted)
            .order_by(Account.org_id)
            .limit(ORGS_AT_ONCE)
        ).all()
        page: list[int] = []
        held = 0
        for org_id, count in rows:
            if page and held + count > TRANSACTIONS_AT_ONCE:
                done += held
                yield page, Progress(done, total)
                page, held = [], 0
            page.append(org_id)
            held += count
        if page:
            done += held
            yield page, Progress(done, total)
        if len(rows) < ORGS_AT_ONCE:
            return
        after = rows[-1].org_id
