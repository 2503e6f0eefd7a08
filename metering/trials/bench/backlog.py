"""From a filled stream to the last ack: how fast meters are when there is always more to do."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from metering.runtime.names import STREAM
from metering.trials.bench.fixture import Fixture, checkpoint
from metering.trials.bench.process import usage
from metering.trials.bench.rate import MeasuringError, Rate
from metering.trials.bench.roles import Role, jobs_commands, meter_command, running_roles
from metering.trials.event_generator import fill
from workers.meter import BATCH_LIMIT

POLL_EVERY_S: Final = 0.005
STALLED_AFTER_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Mark:
    """How many events were done how long after the first."""

    events: int
    after_s: float


@dataclass(frozen=True, slots=True)
class Drained:
    """What it took to bill a backlog."""

    rate: Rate
    marks: list[Mark]
    """In order; some tenths of a second apart, or as far as was asked."""
    meter_cpu_s: float | None
    """Of the meters, over the whole backlog; None where the system doesn't tell."""
    meter_peak_memory_mb: float | None
    """Of the meter that took most."""


def drain(
    fixture: Fixture,
    load: Iterator[str],
    *,
    report: Callable[[int], None],
    meters: int = 1,
    batch_limit: int = BATCH_LIMIT,
    jobs: bool = False,
    checkpoint_halfway: bool = False,
) -> Drained:
    """Fill the stream with `load`, then let so many meters bill it.

    Time counts from when the first of them has done something, not from their start. With `jobs` the jobs role runs beside them,
    and so its reconcilers. A checkpoint halfway belongs to a long run: Postgres writes one every few minutes, and more WAL after
    it.
    """
    left = fill(fixture.client, load, report)
    commands = [meter_command(number, batch_limit=batch_limit) for number in range(meters)]
    with running_roles(fixture.servers.data_dir, commands + (jobs_commands() if jobs else [])) as roles:
        left, started_s, cpu_before_s = (
            _wait_for_the_first(fixture, roles, left, report),
            time.monotonic(),
            _cpu_s(roles[:meters]),
        )
        first_left, marks = left, [Mark(0, 0.0)]
        progress_s = started_s
        while left:
            time.sleep(POLL_EVERY_S)
            now_left, now_s = int(fixture.client.xlen(STREAM)), time.monotonic()
            if now_left < left:
                report(left - now_left)
                progress_s = now_s
                marks.append(Mark(first_left - now_left, now_s - started_s))
            left = now_left
            if checkpoint_halfway and left < first_left / 2:
                checkpoint(fixture)
                checkpoint_halfway = False
            _require_progress(roles, left, progress_s)
        took_s = marks[-1].after_s
        used = [usage(role.process.pid) for role in roles[:meters]]
        cpu_after_s = _cpu_s(roles[:meters])
    return Drained(
        Rate(first_left, took_s),
        marks,
        None if cpu_before_s is None or cpu_after_s is None else cpu_after_s - cpu_before_s,
        max((each.peak_memory_mb for each in used if each is not None), default=None),
    )


def _wait_for_the_first(
    fixture: Fixture, roles: Sequence[Role], filled: int, report: Callable[[int], None]
) -> int:
    """Wait until something is done; give how many events are left then."""
    since_s = time.monotonic()
    while (left := int(fixture.client.xlen(STREAM))) == filled:
        time.sleep(POLL_EVERY_S)
        _require_progress(roles, left, since_s)
    if not left:
        raise MeasuringError(f"All {filled:,} events were billed in one go: ask for more, with --events.")
    report(filled - left)
    return left


def _require_progress(roles: Sequence[Role], left: int, progress_s: float) -> None:
    for role in roles:
        role.require_running()
    if left and time.monotonic() - progress_s > STALLED_AFTER_S:
        raise MeasuringError(f"{left:,} events were not billed; {roles[0].log_path} may tell why.")


def _cpu_s(roles: Sequence[Role]) -> float | None:
    used = [usage(role.process.pid) for role in roles]
    known = [each.cpu_s for each in used if each is not None]
    return sum(known) if len(known) == len(used) else None
