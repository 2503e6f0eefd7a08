"""`metering rejected replay`."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Final

import typer

from metering.console.errors import CommandError, quoted
from metering.console.output import JsonOption, counted, progress_bar, say, show_json, warn
from metering.console.values import id_value
from metering.rules.rejections import Reason, named_org

if TYPE_CHECKING:
    import redis
    from sqlalchemy import Engine, Select

    from db.models import RejectedEvent
    from db.operators.log import Actor

PAGE_EVENTS: Final = 500

ReasonOption = Annotated[
    Reason | None,
    typer.Option(
        metavar="REASON", help=f"Only those with this reason: {', '.join(Reason)}.", show_default=False
    ),
]


@dataclass(slots=True)
class Replay:
    """What became of the events that were to be replayed."""

    replayed_as: dict[int, str] = field(default_factory=dict)
    """By id: the new stream entry."""
    refused: dict[int, str] = field(default_factory=dict)
    """By id: why it was not replayed."""


def replay(
    ids: Annotated[
        list[int] | None, typer.Argument(metavar="ID", help="Which; their ids.", show_default=False)
    ] = None,
    reason: ReasonOption = None,
    all_: Annotated[bool, typer.Option("--all", help="All that wait.")] = False,
    again: Annotated[
        bool,
        typer.Option(
            "--again",
            help="Also those that were replayed before: for what Redis lost before a meter had read it.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Push rejected events again, once the cause is mended, as the bytes that came.

    Name them by id, or by reason, or take all that wait. They stay listed, marked as replayed. A call is billed
    once, however often it is replayed; what still can't be billed is rejected anew.
    """
    from metering.console.connections import open_database, open_redis
    from metering.console.operators import require_operator

    chosen = ids or []
    if bool(chosen) == bool(reason is not None or all_):
        raise typer.BadParameter(
            "name events by their ids, or by --reason, or take --all that wait.", param_hint="ID"
        )
    for rejected_id in chosen:
        id_value("ID", rejected_id)
    with open_database(command="rejected replay") as engine, open_redis() as client, progress_bar() as bar:
        actor = require_operator(engine, "rejected replay")
        task = bar.add_task("replaying", total=None, count=0)
        done = _replay(
            client,
            engine,
            actor,
            _pages_by_id(engine, chosen) if chosen else _pages_by_reason(engine, reason, again=again),
            again=again,
            report=lambda so_far: bar.update(task, count=so_far),
        )
    for rejected_id in chosen:
        if rejected_id not in done.replayed_as:
            done.refused.setdefault(rejected_id, "there is no rejected event with this id")
    _show(done, as_json=as_json)
    if chosen and done.refused:
        raise CommandError(f"{counted(len(done.refused), 'event')} of those asked for not replayed.")


def _show(done: Replay, *, as_json: bool) -> None:
    if as_json:
        results = [{"id": key, "replayed_as": stream_id} for key, stream_id in done.replayed_as.items()]
        refused = [{"id": key, "detail": why} for key, why in done.refused.items()]
        show_json({"results": results, "total": len(results), "refused": refused})
        return
    for rejected_id, why in done.refused.items():
        warn(f"Event {rejected_id} was not replayed: {why}.")
    say(f"{counted(len(done.replayed_as), 'event')} replayed.")


def _replay(
    client: "redis.Redis",
    engine: "Engine",
    actor: "Actor",
    pages: Iterator[Sequence["RejectedEvent"]],
    *,
    again: bool,
    report: Callable[[int], None],
) -> Replay:
    """Push each event of `pages` and only then mark it: a crash between the two makes a duplicate, which costs nothing."""
    import redis

    from db.ledger.rejections import mark_replayed
    from db.operators.log import log_action
    from db.postgres.clock import read_clock
    from db.postgres.engine import transaction
    from metering.signals.call_stream import append_events

    done = Replay()
    for page in pages:
        wanted = []
        for event in page:
            why = _why_not(event, again=again)
            if why is None:
                wanted.append(event)
            else:
                done.refused[event.id] = why
        if not wanted:
            continue
        try:
            answers = append_events(client, [event.raw for event in wanted])
        except redis.RedisError as error:
            raise _interrupted(error, done) from error
        pairs = list(zip(wanted, answers, strict=True))
        pushed = {event.id: answer.decode() for event, answer in pairs if isinstance(answer, bytes)}
        with transaction(engine) as connection:
            mark_replayed(connection, pushed, read_clock(connection))
            for event in wanted:
                if event.id in pushed:
                    log_action(
                        connection,
                        actor,
                        "rejected replay",
                        org_id=named_org(event.raw),
                        subject=event.id,
                        details={"replayed_as": pushed[event.id]},
                    )
        done.replayed_as |= pushed
        report(len(done.replayed_as))
        for _, answer in pairs:
            if isinstance(answer, redis.RedisError):
                raise _interrupted(answer, done) from answer
    return done


def _interrupted(error: Exception, done: Replay) -> CommandError:
    from metering.cli.push import SEE_TO_REDIS

    return CommandError(
        f"Redis can't be reached, or refuses: {quoted(error)}; {counted(len(done.replayed_as), 'event')} replayed before that."
        f" {SEE_TO_REDIS} Replaying the rest is safe: a call is billed once."
    )


def _why_not(event: "RejectedEvent", *, again: bool) -> str | None:
    """Why an event can't be replayed, or None if it can."""
    if event.dismissed_at is not None and not again:
        return f"it was dismissed: {event.dismissed_reason}; --again replays it all the same"
    if event.reason == Reason.TOO_LARGE:
        return f"of its {event.raw_length_bytes:,} bytes at most the first 64 KiB are kept; its producer has to send it anew"
    if event.reason == Reason.INVALID_FIELD and event.detail.startswith("event:"):
        return "its stream entry had no field `event`; its producer has to send it anew"
    if event.replayed_at is not None and not again:
        return f"it was replayed before, as {event.replayed_as}; --again does it once more"
    return None


def _pages_by_id(engine: "Engine", ids: Sequence[int]) -> Iterator[Sequence["RejectedEvent"]]:
    from sqlalchemy import select

    from db.models import RejectedEvent

    ordered = sorted(set(ids))
    for start in range(0, len(ordered), PAGE_EVENTS):
        yield _read(
            engine, select(RejectedEvent).where(RejectedEvent.id.in_(ordered[start : start + PAGE_EVENTS]))
        )


def _pages_by_reason(
    engine: "Engine", reason: Reason | None, *, again: bool
) -> Iterator[Sequence["RejectedEvent"]]:
    """Those that wait now, with `again` also those that were replayed before.

    Not those that are rejected anew while this goes on, or it would never end.
    """
    from sqlalchemy import func, select

    from db.models import RejectedEvent

    with engine.connect() as connection:
        newest_id = connection.scalar(select(func.max(RejectedEvent.id))) or 0
    last_id = 0
    while True:
        wanted = select(RejectedEvent).where(RejectedEvent.id > last_id, RejectedEvent.id <= newest_id)
        if not again:
            wanted = wanted.where(RejectedEvent.replayed_at.is_(None))
        wanted = wanted.where(RejectedEvent.dismissed_at.is_(None))
        if reason is not None:
            wanted = wanted.where(RejectedEvent.reason == reason.value)
        page = _read(engine, wanted.limit(PAGE_EVENTS))
        if not page:
            return
        yield page
        last_id = page[-1].id


def _read(engine: "Engine", events: "Select[RejectedEvent]") -> Sequence["RejectedEvent"]:
    from sqlalchemy.orm import Session

    from db.models import RejectedEvent

    with Session(engine) as session:
        return session.scalars(events.order_by(RejectedEvent.id)).all()
