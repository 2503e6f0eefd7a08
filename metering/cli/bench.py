"""`metering bench`."""

import os
from typing import TYPE_CHECKING, Annotated

import typer

from metering.console.output import JsonOption

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rich.progress import Progress

    from metering.trials.bench.plan import Part

PARTS = "throughput, latency, reads, batches, long, ledger"


def bench(
    full: Annotated[
        bool,
        typer.Option(
            "--full", help="Everything, for an hour or two: long runs, a large ledger, every batch limit."
        ),
    ] = False,
    part: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PART", help=f"Only this part; can be repeated. One of {PARTS}.", show_default=False
        ),
    ] = None,
    events: Annotated[
        int | None,
        typer.Option(
            min=10_000, help="Events per repetition; 40,000, or 200,000 with --full.", show_default=False
        ),
    ] = None,
    orgs: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many orgs make calls.")] = 1_000,
    meters: Annotated[
        int, typer.Option(min=1, max=16, help="How many meters at most bill them side by side.")
    ] = 2,
    jobs: Annotated[
        bool, typer.Option("--jobs", help="Run the jobs, and so their reconcilers, beside the meters.")
    ] = False,
    repeat: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=20,
            help="Repetitions, of which the median counts; 3, or 5 with --full.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure events per second from a filled stream to the last ack, and latency under load that doesn't wait.

    On embedded servers of its own, with fsync on, beside baselines that are taken in the same run: one dramatiq message
    per call, one transaction per call, TPC-B by pgbench, raw COPY. One event in twenty is a duplicate. Ratios tell more
    than rates: they depend less on the machine.
    """
    from metering.console.errors import CommandError
    from metering.console.output import progress_bar, show_json
    from metering.runtime.logs import configure_logs
    from metering.runtime.settings import read_settings
    from metering.trials.bench.fixture import making_fixture
    from metering.trials.bench.plan import Part, make_plan
    from metering.trials.bench.rate import MeasuringError
    from metering.trials.bench.report import show_result
    from metering.trials.bench.run import Result, run_benchmark

    configure_logs()
    try:
        parts = frozenset(Part(name) for name in part or ())
    except ValueError:
        raise CommandError(f"--part: must be one of {PARTS}.") from None
    plan = make_plan(
        full=full, parts=parts, events=events, orgs=orgs, meters=meters, repetitions=repeat, jobs=jobs
    )
    data_dir = read_settings().data_dir / f"bench-{os.getpid()}"
    result = Result()
    failure: MeasuringError | None = None
    try:
        with making_fixture(data_dir) as fixture, progress_bar() as bar:
            run_benchmark(fixture, plan, result, _teller(bar, plan.expected_events()))
    except MeasuringError as error:
        failure = error  # told once what was measured before it, perhaps for an hour, is told
    if result.machine:
        if as_json:
            show_json(result.as_json())
        else:
            show_result(result)
    if failure is not None:
        raise CommandError(str(failure)) from failure


def _teller(bar: "Progress", expected: "Mapping[Part, int]") -> "Callable[[Part, int], None]":
    """What shows the part that is being measured, and how far all of it is."""
    done = dict.fromkeys(expected, 0)
    task = bar.add_task("starting servers", total=sum(expected.values()), count=0)

    def tell(part: "Part", more_events: int) -> None:
        done[part] += more_events
        so_far = 0
        for each, events in expected.items():  # in the order in which they are measured
            if each is part:
                so_far += min(done[each], events)
                break
            so_far += events
        bar.update(task, description=part.value, completed=so_far, count=done[part])

    return tell
