"""`metering status`."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from metering.console.output import JsonOption, add_row, counted, say, show_json, show_table, table
from metering.rules.gates import GateState
from metering.rules.times import format_time

if TYPE_CHECKING:
    import redis
    from sqlalchemy import Engine

    from db.accounts.overspent import AllOverspent
    from metering.signals.gates import Gates


MAX_GATES: Final = 100_000
"""How many orgs' gates are looked at: a look at more would take longer than somebody waits for."""
MAX_LIMITED: Final = 20
"""Of how many orgs it is said what they have left of the month."""


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """What waits in the stream. `oldest_waiting_seconds` is None where nothing does."""

    lag: int
    pending: int
    oldest_waiting_seconds: float | None


@dataclass(frozen=True, slots=True)
class MeterStatus:
    """A meter in the stream's group: how many events it has in hand, and how long ago it last asked for any."""

    name: str
    pending: int
    idle_seconds: float


@dataclass(frozen=True, slots=True)
class LedgerStatus:
    """What the database holds. `rejected_waiting` counts by reason."""

    orgs: int
    orgs_exhausted: int
    """Those that are suspended left out."""
    orgs_suspended: int
    balance_cents: int
    rejected_waiting: dict[str, int]


@dataclass(slots=True)
class GatesStatus:
    """The orgs' gates as Redis holds them, of the `orgs_looked_at` with the lowest ids: at most MAX_GATES."""

    orgs_looked_at: int = 0
    open: int = 0
    exhausted: int = 0
    suspended: int = 0
    missing: int = 0
    """Not there, or in none of these states: telephony lets no call start."""
    not_following: int = 0
    """Those that are there and say something else than the org's balance, or whether an operator has suspended it."""


@dataclass(slots=True)
class HoldsStatus:
    """What running calls hold in Redis, of all orgs."""

    orgs: int = 0
    held_cents: int = 0
    running_calls: int = 0
    lapsed_calls: int = 0
    """Their time is over, and no event has come: it is late, or lost."""


@dataclass(frozen=True, slots=True)
class ServersStatus:
    """Which servers these are, and what is wrong with how they are set up (docs/how-to/servers.md)."""

    postgres_version: str
    redis_version: str
    wrong: list[str]


def status(as_json: JsonOption = False) -> None:
    """Show how things stand: the backlog, the meters, the orgs and their gates, what was rejected, charges and reloads."""
    from db.accounts.overspent import read_overspent
    from db.attempts.reload_status import read_reload_status
    from db.payments.set_aside_events import count_set_aside
    from db.postgres.clock import read_clock
    from db.postgres.schema import expected_revision
    from metering.console.connections import open_database, open_redis
    from metering.console.reload_status import reload_json, show_reloads

    with open_database(command="status") as engine, open_redis() as client:
        servers = _servers(engine, client)
        ledger, stream, meters = _ledger(engine), _stream(client), _meters(client)
        gates = _gates(engine, client)
        holds, holding = _holds(client)
        with engine.connect() as connection:
            now = read_clock(connection)
            reloads = read_reload_status(connection, now, limit=MAX_LIMITED)
            set_aside, set_aside_since = count_set_aside(connection)
            overspent = read_overspent(connection, holding, with_log=True)
    if as_json:
        found: dict[str, Any] = {
            "schema_revision": expected_revision(),  # the database's own, or open_database would have refused it
            **asdict(ledger),
            **reload_json(reloads, now),
            "stripe_events_set_aside": {"number": set_aside, "oldest_at": set_aside_since},
            "gates": asdict(gates),
            "holds": asdict(holds),
            "overspent": asdict(overspent),
            "stream": asdict(stream),
            "servers": asdict(servers),
            "meters": [asdict(meter) for meter in meters],
        }
        show_json(found)
    else:
        _show(ledger, gates, stream, holds, overspent, expected_revision())
        for problem in servers.wrong:
            say(problem)
        show_reloads(reloads, now)
        if set_aside:
            since = format_time(set_aside_since or now)
            say(
                f"{counted(set_aside, 'event')} of Stripe's could not be handled, since {since}. Each is tried again;"
                " `metering stripe-event list` names it, and why."
            )
        _show_meters(meters)


def _servers(engine: "Engine", client: "redis.Redis") -> ServersStatus:
    from db.postgres.server_checks import read_about
    from metering.runtime import redis_checks

    with engine.connect() as connection:
        postgres = read_about(connection)
    about = redis_checks.read_about(client)
    wrong = [*postgres.concerns, *([about.problem] if about.problem is not None else about.concerns)]
    return ServersStatus(postgres.version, about.version, wrong)


def _ledger(engine: "Engine") -> LedgerStatus:
    from sqlalchemy import func, select

    from db.models import Account, RejectedEvent

    with engine.connect() as connection:
        suspended = Account.suspended_at.is_not(None)
        orgs, exhausted, orgs_suspended, balance_cents = connection.execute(
            select(
                func.count(),
                func.count().filter(Account.balance_cents <= 0, ~suspended),
                func.count().filter(suspended),
                func.coalesce(func.sum(Account.balance_cents), 0),
            ).select_from(Account)
        ).one()
        waiting = connection.execute(
            select(RejectedEvent.reason, func.count())
            .where(RejectedEvent.replayed_at.is_(None), RejectedEvent.dismissed_at.is_(None))
            .group_by(RejectedEvent.reason)
            .order_by(RejectedEvent.reason)
        )
        return LedgerStatus(orgs, exhausted, orgs_suspended, int(balance_cents), dict(waiting.all()))


def _gates(engine: "Engine", client: "redis.Redis") -> GatesStatus:
    from db.ledger.balances import pages_of_org_ids
    from metering.signals.gates import PAGE, Gates

    found, gates = GatesStatus(), Gates(client)
    for page in pages_of_org_ids(engine, PAGE):
        org_ids = page[: MAX_GATES - found.orgs_looked_at]
        held = Counter(gate.state for gate in gates.read(org_ids))
        found.orgs_looked_at += len(org_ids)
        found.open += held[GateState.OPEN]
        found.exhausted += held[GateState.EXHAUSTED]
        found.suspended += held[GateState.SUSPENDED]
        found.missing += len(org_ids) - sum(held[state] for state in GateState)
        # A second look: a balance that changed between two readings is no gate that doesn't follow.
        found.not_following += len(_not_following(engine, gates, _not_following(engine, gates, org_ids)))
        if found.orgs_looked_at == MAX_GATES:
            break
    return found


def _holds(client: "redis.Redis") -> tuple[HoldsStatus, set[int]]:
    """What is held, and which orgs have taken holds lately."""
    from metering.signals.holds import Holds

    found, holds, holding = HoldsStatus(), Holds(client), set[int]()
    for page in holds.org_ids():
        new = sorted(set(page) - holding)
        holding.update(new)
        for each in holds.totals(new) if new else []:
            found.orgs += each.running_calls + each.lapsed_calls > 0
            found.held_cents += each.held_cents
            found.running_calls += each.running_calls
            found.lapsed_calls += each.lapsed_calls
    return found, holding


def _not_following(engine: "Engine", gates: "Gates", org_ids: Sequence[int]) -> list[int]:
    """Those of the orgs whose gates are there, but don't say what follows from their balances."""
    from db.ledger.balances import read_balances

    if not org_ids:
        return []
    balances = {balance.org_id: balance for balance in read_balances(engine, org_ids)}
    return [
        gate.org_id
        for gate in gates.read(org_ids)
        if gate.state in tuple(GateState)
        and gate.org_id in balances
        and not gate.follows(balances[gate.org_id])
    ]


def _stream(client: "redis.Redis") -> StreamStatus:
    from metering.runtime.names import STREAM
    from workers.stream import backlog

    waiting = backlog(client)
    with client.pipeline(transaction=True) as pipeline:
        pipeline.time()
        pipeline.xrange(STREAM, count=1)
        (now_s, now_us), oldest = pipeline.execute()
    age_s = None
    if oldest:
        pushed_ms = int(oldest[0][0].split(b"-")[0])  # Redis's own clock, as `now` is
        age_s = max(now_s * 1_000 + now_us // 1_000 - pushed_ms, 0) / 1_000
    return StreamStatus(waiting.lag, waiting.pending, age_s)


def _meters(client: "redis.Redis") -> list[MeterStatus]:
    import redis

    from metering.runtime.names import STREAM
    from workers.stream import GROUP

    try:
        consumers: Any = client.xinfo_consumers(STREAM, GROUP)
    except redis.ResponseError as error:
        if "no such key" in str(error) or str(error).startswith("NOGROUP"):
            return []  # no meter has run yet
        raise
    return [
        MeterStatus(
            consumer["name"].decode("utf-8", "replace"), consumer["pending"], consumer["idle"] / 1_000
        )
        for consumer in consumers
    ]


def _show(
    ledger: LedgerStatus,
    gates: GatesStatus,
    stream: StreamStatus,
    holds: HoldsStatus,
    overspent: "AllOverspent",
    revision: str,
) -> None:
    from metering.rules.money import format_usd

    shown = table("what", ">how much", title="Metering")
    waiting = sum(ledger.rejected_waiting.values())
    of_how_many = (
        f", of the first {gates.orgs_looked_at:,} orgs" if gates.orgs_looked_at < ledger.orgs else ""
    )
    rows: list[tuple[str, object]] = [
        ("orgs", f"{ledger.orgs:,}"),
        ("orgs exhausted (balance 0 or less)", f"{ledger.orgs_exhausted:,}"),
        ("orgs suspended by an operator", f"{ledger.orgs_suspended:,}"),
        ("all balances, USD", format_usd(ledger.balance_cents)),
        (f"gates open{of_how_many}", f"{gates.open:,}"),
        ("gates exhausted", f"{gates.exhausted:,}"),
        ("gates suspended", f"{gates.suspended:,}"),
        ("gates missing", f"{gates.missing:,}"),
        ("gates that don't follow their balance yet", f"{gates.not_following:,}"),
        ("calls that hold money", f"{holds.running_calls:,}"),
        ("held for them, USD", format_usd(holds.held_cents)),
        ("lapsed calls, whose event is late or lost", f"{holds.lapsed_calls:,}"),
        ("orgs overspent (balance below 0)", f"{overspent.orgs:,}"),
        ("overspent, USD", format_usd(overspent.cents)),
        *(
            (f"  {reason.value}", f"{each.orgs:,} orgs, {format_usd(each.cents)}")
            for reason, each in overspent.reasons.items()
        ),
        ("events that no meter has read", f"{stream.lag:,}"),
        ("events that a meter has in hand", f"{stream.pending:,}"),
        (
            "oldest of these events, seconds",
            None if stream.oldest_waiting_seconds is None else f"{stream.oldest_waiting_seconds:,.1f}",
        ),
        ("rejected events that wait", f"{waiting:,}"),
        *((f"  {reason}", f"{number:,}") for reason, number in ledger.rejected_waiting.items()),
        ("schema", revision),
    ]
    for row in rows:
        add_row(shown, row)
    show_table(shown)


def _show_meters(meters: list[MeterStatus]) -> None:
    if not meters:
        say("No meter runs.")
        return
    shown = table("meter", ">events in hand", ">seconds since it asked", title=counted(len(meters), "meter"))
    for meter in meters:
        add_row(shown, [meter.name, f"{meter.pending:,}", f"{meter.idle_seconds:,.1f}"])
    show_table(shown)
