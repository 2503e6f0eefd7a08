"""What `metering bench` shows people."""

from typing import TYPE_CHECKING

from metering.console.output import add_row, counted, say, show_table, table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from metering.trials.bench.long_runs import Grown, LongRun
    from metering.trials.bench.open_loop import Observed
    from metering.trials.bench.rate import Spread
    from metering.trials.bench.run import Reads, Result
    from metering.trials.bench.sustained import Latency
    from metering.trials.bench.throughput import Measured, Throughput


def show_result(result: "Result") -> None:
    """Ratios first, then what they were made from, then the machine."""
    from metering.trials.bench.run import ratios  # noqa: PLC0415 - so that --help is quick

    _show_ratios(ratios(result))
    if result.throughput is not None:
        _show_throughput(result.throughput)
    if result.latency is not None:
        _show_latency(result.latency)
    if result.reads is not None:
        _show_reads(result.reads)
    if result.batches is not None:
        _show_measured("Throughput against the largest batch", result.batches)
    if result.long is not None:
        _show_long_run(result.long)
    if result.ledger is not None:
        _show_growth(result.ledger)
    machine = result.machine
    say(
        f"{machine['cpus']} CPUs ({machine['processor']}), {machine['memory_gb']} GB, load {machine['load_1m']} before;"
        f" Python {machine['python']}, Postgres {machine['postgres']}, {machine['system']};"
        " fsync, full_page_writes and synchronous_commit on; 5% of events are duplicates."
    )


def _show_ratios(found: "Mapping[str, float]") -> None:
    shown = table("ratio", ">", title="Ratios of medians")
    for name, value in found.items():
        add_row(shown, [name.replace("_", " "), f"{value:,.3g}"])
    if shown.row_count:
        show_table(shown)


def _show_reads(reads: "Reads") -> None:
    hget = reads.hget
    say(
        f"HGET of a gate: p50 {hget.p50_ms:.3f} ms, p99 {hget.p99_ms:.3f} ms ({counted(hget.count, 'read')})."
        f" Reconciling {reads.gates:,} gates: {reads.sweep_s:.2f} s."
    )
    shown = table(
        *("GET", "by", ">per second", ">beside events/s", ">p50", ">p99", ">highest"),
        title="Milliseconds from a request's scheduled time",
    )
    for read in reads.http:
        took = (read.took.p50_ms, read.took.p99_ms, read.took.highest_ms)
        rates = (f"{read.per_second:,.0f}", f"{read.events_per_second:,.0f}")
        add_row(shown, [read.path, read.credentials, *rates, *(f"{ms:.1f}" for ms in took)])
    show_table(shown)


def _show_long_run(run: "LongRun") -> None:
    shown = table(">up to event", ">us per event", title=f"One run of {run.events:,} events")
    for stretch in run.stretches:
        add_row(shown, [f"{stretch.up_to_events:,}", f"{stretch.us_per_event:.1f}"])
    show_table(shown)
    peak = "not told by this system" if run.peak_memory_mb is None else f"{run.peak_memory_mb:.0f} MB"
    say(f"The meter's memory at its most: {peak}.")


def _show_growth(ledger: "list[Grown]") -> None:
    shown = table(">debits in the ledger", ">per second", ">lowest", ">highest", title="As the ledger grows")
    for grown in ledger:
        add_row(shown, [f"{grown.ledger_debits:,}", *_rates(grown.measured.per_second)])
    show_table(shown)


def _show_throughput(throughput: "Throughput") -> None:
    _show_measured("From a filled stream to ack", throughput.measured)
    shown = table("baseline", ">per second", ">lowest", ">highest")
    baselines = throughput.baselines
    for name, spread in (
        ("one dramatiq message per call", baselines.one_message_per_call),
        ("one transaction per call", baselines.one_transaction_per_call),
        ("TPC-B (pgbench)", baselines.tpcb),
        ("raw COPY of the same rows", baselines.raw_copy),
    ):
        add_row(shown, [name, *_rates(spread)])
    show_table(shown)
    cost = throughput.debit
    say(
        f"A debit takes {cost.table_bytes:.0f} bytes of table, {cost.index_bytes:.0f} of indexes, {cost.wal_bytes:.0f} of WAL;"
        f" {cost.hot_update_share:.1%} of the updates of accounts are heap-only (over {cost.debits:,} debits)."
    )


def _show_measured(title: str, measured: "list[Measured]") -> None:
    shown = table(
        *("traffic", ">orgs", ">meters", ">batch", ">per second", ">lowest", ">highest"),
        *(">CPU us/event", ">peak MB"),
        title=title,
    )
    for each in measured:
        workload = each.workload
        cpu_us = "-" if each.cpu_us_per_event is None else f"{each.cpu_us_per_event:.1f}"
        add_row(
            shown,
            [
                *(workload.traffic.value, f"{workload.orgs:,}", workload.meters, f"{workload.batch_limit:,}"),
                *_rates(each.per_second),
                *(cpu_us, "-" if each.peak_memory_mb is None else f"{each.peak_memory_mb:.0f}"),
            ],
        )
    show_table(shown)


def _show_latency(latency: "Latency") -> None:
    shown = table(
        *(
            "load",
            ">per second",
            ">commit p50",
            ">p99",
            ">gate p50",
            ">p99",
            ">highest",
            ">backlog",
            "kept up",
        ),
        title="Milliseconds from an event's scheduled time",
    )
    for name, observed in (
        ("search", latency.search),
        ("70% of the highest", latency.at_share),
        ("ladder", latency.ladder),
        ("lone events", [latency.lone]),
    ):
        for each in observed:
            add_row(shown, [name, *_latencies(each)])
    show_table(shown)
    say(f"The highest load that was sustained: {latency.sustained_per_second:,.0f} events per second.")


def _latencies(seen: "Observed") -> list[str]:
    numbers = (
        seen.commit.p50_ms,
        seen.commit.p99_ms,
        seen.gate.p50_ms,
        seen.gate.p99_ms,
        seen.gate.highest_ms,
    )
    return [
        f"{seen.per_second:,.0f}",
        *(f"{number:.1f}" for number in numbers),
        f"{seen.backlog:,}",
        "yes" if seen.sustained else "no",
    ]


def _rates(spread: "Spread") -> list[str]:
    return [f"{rate:,.0f}" for rate in (spread.median, spread.lowest, spread.highest)]
