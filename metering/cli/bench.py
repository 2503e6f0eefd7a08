# ruff: noqa: PLC0415 - imported when the command runs, so that --help is quick
"""`metering bench`."""

import os
import platform
import shutil
import statistics
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from metering.cli.output import JsonOption

if TYPE_CHECKING:
    from metering.sandbox.measuring import Rate

SINGLE_EVENTS: Final = 2_000
WARM_UP_EVENTS: Final = 5_000


def bench(
    events: Annotated[int, typer.Option(min=1_000, help="Events per repetition.")] = 100_000,
    orgs: Annotated[int, typer.Option(min=1, help="How many orgs make calls, evenly.")] = 1_000,
    meters: Annotated[int, typer.Option(min=1, max=16, help="How many meters bill them.")] = 1,
    jobs: Annotated[
        bool, typer.Option("--jobs", help="Run the jobs, and so their sweeps, beside the meters.")
    ] = False,
    repeat: Annotated[int, typer.Option(min=1, max=20, help="Repetitions; the median counts.")] = 3,
    as_json: JsonOption = False,
) -> None:
    """Measure events per second from a filled stream to the last ack, beside baselines taken in the same run.

    On embedded servers of its own, with fsync on. One event in twenty is a duplicate. Ratios tell more than rates:
    they depend less on the machine.
    """
    from metering.cli.connections import engine_for
    from metering.cli.output import progress_bar, show_json
    from metering.runtime.clock import system_clock
    from metering.runtime.redis_connection import connect_redis
    from metering.runtime.settings import read_settings
    from metering.sandbox.measuring import (
        fill_stream,
        measure_meters,
        measure_raw_copy,
        measure_sweep,
        prepare,
        require_durability,
    )
    from metering.sandbox.servers import running

    data_dir = read_settings().data_dir / f"bench-{os.getpid()}"
    for name in list(os.environ):
        if name.startswith(("METERING_", "STRIPE_")):
            del os.environ[name]  # the roles are to find the servers of this run, and ports of their own
    os.environ["METERING_DATA_DIR"] = str(data_dir)
    rates: list[Rate] = []
    try:
        with (
            running(data_dir) as servers,
            engine_for(servers.owner_database_url, command="bench") as owner,
            engine_for(servers.database_url, command="bench") as engine,
            connect_redis(servers.redis_url) as client,
            progress_bar() as bar,
        ):
            _set_up(owner)
            require_durability(engine)
            prepare(owner, orgs=orgs, clock=system_clock)
            total = 2 * (WARM_UP_EVENTS + repeat * events + SINGLE_EVENTS)
            task = bar.add_task("measuring", total=total, events=0)

            def report(more: int) -> None:
                bar.update(task, advance=more, events=int(bar.tasks[task].completed))

            for turn in range(repeat + 1):
                fill_stream(client, events if turn else WARM_UP_EVENTS, orgs=orgs, turn=turn, report=report)
                rate = measure_meters(client, meters=meters, report=report, jobs=jobs)
                if turn:
                    rates.append(rate)
            fill_stream(client, SINGLE_EVENTS, orgs=orgs, turn=repeat + 1, report=report)
            single = measure_meters(client, meters=1, report=report, batch_limit=1)
            copy = measure_raw_copy(servers.owner_database_url)
            sweep_s = measure_sweep(engine, client)
    finally:
        shutil.rmtree(data_dir, ignore_errors=True)
    result = _result(rates, single, copy, sweep_s, events=events, orgs=orgs, meters=meters, jobs=jobs)
    if as_json:
        show_json(result)
    else:
        _show(result)


def _set_up(owner: Any) -> None:
    from db.schema import migrate

    migrate(owner)


def _result(
    rates: "list[Rate]",
    single: "Rate",
    copy: "Rate",
    sweep_s: float,
    *,
    events: int,
    orgs: int,
    meters: int,
    jobs: bool,
) -> dict[str, Any]:
    each = sorted(rate.per_second for rate in rates)
    median = statistics.median(each)
    return {
        "machine": {
            "cpus": os.cpu_count(),
            "load_1m": round(os.getloadavg()[0], 2),
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "events": events,
        "orgs": orgs,
        "meters": meters,
        "jobs": jobs,
        "sweep_seconds": round(sweep_s, 3),
        "events_per_second": round(median),
        "events_per_second_lowest": round(each[0]),
        "events_per_second_highest": round(each[-1]),
        "baselines": {
            "one_transaction_per_call_per_second": round(single.per_second),
            "raw_copy_rows_per_second": round(copy.per_second),
        },
        "ratios": {
            "to_one_transaction_per_call": round(median / single.per_second, 2),
            "to_raw_copy": round(median / copy.per_second, 3),
        },
    }


def _show(result: dict[str, Any]) -> None:
    from metering.cli.output import add_row, counted, say, show_table, table

    machine, ratios, baselines = result["machine"], result["ratios"], result["baselines"]
    shown = table("measured", ">per second", ">the meter is")
    spread = f"{result['events_per_second_lowest']:,} to {result['events_per_second_highest']:,}"
    add_row(
        shown,
        [
            f"{counted(result['meters'], 'meter')}, stream to ack ({spread})",
            f"{result['events_per_second']:,}",
            "",
        ],
    )
    add_row(
        shown,
        [
            "one transaction per call",
            f"{baselines['one_transaction_per_call_per_second']:,}",
            f"{ratios['to_one_transaction_per_call']:.1f} times as fast",
        ],
    )
    add_row(
        shown,
        [
            "raw COPY of the same rows",
            f"{baselines['raw_copy_rows_per_second']:,}",
            f"{ratios['to_raw_copy']:.0%} of it",
        ],
    )
    show_table(shown)
    say(
        f"A sweep over all {result['orgs']:,} gates: {result['sweep_seconds']:.2f} s."
        f" {result['events']:,} events over {result['orgs']:,} orgs a repetition, 5% duplicates, fsync on;"
        f" {machine['cpus']} CPUs, load {machine['load_1m']}, Python {machine['python']}, {machine['system']}."
    )
