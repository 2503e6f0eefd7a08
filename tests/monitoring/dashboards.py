"""Grafana's dashboards as code: `make dashboards` writes them to deploy/grafana/dashboards/."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.stat import Panel as Stat
from grafana_foundation_sdk.builders.timeseries import Panel as Timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DataSourceRef

FOLDER: Final = Path(__file__).parents[2] / "deploy" / "grafana" / "dashboards"
PROMETHEUS: Final = DataSourceRef(type_val="prometheus", uid="prometheus")
"""The data source of deploy/grafana/provisioning/datasources/prometheus.yml."""
FAILED: Final = '{status=~"5.."}'
PAUSED: Final = "metering_auto_reload_paused_orgs"
HALF, THIRD, HEIGHT = 12, 8, 8

Query = tuple[str, str]
"""What Prometheus is asked, and how a line of the answer is called."""


def lines(title: str, unit: str, *queries: Query, about: str = "", span: int = HALF) -> Timeseries:
    """A panel with lines over time."""
    panel = Timeseries().title(title).description(about).unit(unit).datasource(PROMETHEUS)
    panel = panel.span(span).height(HEIGHT).fill_opacity(10).min(0)
    for query in _asked(queries):
        panel = panel.with_target(query)
    return panel


def number(title: str, unit: str, *queries: Query, about: str = "", span: int = THIRD) -> Stat:
    """A panel with what is so now, or was in all over the time that is shown."""
    panel = Stat().title(title).description(about).unit(unit).datasource(PROMETHEUS).span(span).height(5)
    for query in _asked(queries):
        panel = panel.with_target(query.instant())
    return panel


def _asked(queries: Sequence[Query]) -> Iterator[Dataquery]:
    for place, (expression, legend) in enumerate(queries):
        name = chr(ord("A") + place)
        yield Dataquery().expr(expression).legend_format(legend).ref_id(name).datasource(PROMETHEUS)


def rate(counter: str, by: str = "", where: str = "") -> str:
    """How fast a counter rises, over all processes."""
    return f"sum{f' by ({by})' if by else ''} (rate({counter}{where}[$__rate_interval]))"


def total(counter: str, by: str = "") -> str:
    """By how much a counter has risen in the time that is shown."""
    return f"sum{f' by ({by})' if by else ''} (increase({counter}[$__range]))"


def quantile(share: float, histogram: str, by: str = "") -> str:
    """A quantile of a histogram, over all processes."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({labels}) (rate({histogram}_bucket[$__rate_interval])))"


def quantiles(histogram: str) -> list[Query]:
    return [(quantile(share, histogram), f"p{share * 100:.0f}") for share in (0.5, 0.99)]


def operations() -> Dashboard:
    """Whether it works, for who runs it."""
    board = _board("Metering: operations", "metering-operations", "30m")
    board = board.with_row(Row("Now"))
    board = board.with_panel(
        number("Processes", "none", ("count by (role) (metering_build_info)", "{{role}}"))
    )
    board = board.with_panel(
        number("Version", "none", ("count by (version) (metering_build_info)", "{{version}}"))
    )
    broken = ("sum(max by (invariant) (metering_invariant_violations))", "places")
    board = board.with_panel(
        number("Invariants broken", "none", broken, about="Anything but 0 is never normal.")
    )

    board = board.with_row(Row("From push to gate"))
    for panel in (
        lines("Events by outcome", "ops", (rate("metering_events_total", "outcome"), "{{outcome}}")),
        lines(
            *("Events that wait", "none"),
            ("max(metering_stream_lag_events)", "no meter has read"),
            ("max(metering_stream_pending_events)", "a meter has in hand"),
        ),
        lines(
            *("Age of the oldest event", "s", ("max(metering_stream_oldest_event_seconds)", "oldest")),
            about="Gates are late by as much.",
        ),
        lines("From event to commit", "s", *quantiles("metering_event_to_commit_seconds")),
        lines("From commit to gate", "s", *quantiles("metering_commit_to_signal_seconds")),
        lines("Time of a batch", "s", *quantiles("metering_batch_seconds")),
        lines(
            *("Events in a batch", "none"),
            (f"{rate('metering_batch_events_sum')} / {rate('metering_batch_events_count')}", "on average"),
        ),
        lines("Gates mended", "ops", (rate("metering_gates_mended_total"), "mended")),
    ):
        board = board.with_panel(panel)

    board = board.with_row(Row("API"))
    requests = "metering_http_requests_total"
    for panel in (
        lines("Requests by status", "reqps", (rate(requests, "status"), "{{status}}")),
        lines("Requests by route", "reqps", (rate(requests, "method, route"), "{{method}} {{route}}")),
        lines(
            "Slowest of a hundred",
            "s",
            (quantile(0.99, "metering_http_request_seconds", "route"), "{{route}}"),
        ),
        lines(
            *("Answered with 5xx", "percentunit"),
            (f"({rate(requests, where=FAILED)} or vector(0)) / {rate(requests)}", "share"),
        ),
    ):
        board = board.with_panel(panel)

    board = board.with_row(Row("Stripe"))
    asked, events = "metering_stripe_request_seconds", "metering_stripe_events_total"
    for panel in (
        lines(
            "Requests by operation and outcome",
            "reqps",
            (rate(f"{asked}_count", "operation, outcome"), "{{operation}} {{outcome}}"),
        ),
        lines(
            "Slowest of a hundred, by operation", "s", (quantile(0.99, asked, "operation"), "{{operation}}")
        ),
        lines(
            "Events by source and outcome",
            "ops",
            (rate(events, "source, outcome"), "{{source}} {{outcome}}"),
        ),
        lines("Declines by code", "ops", (rate("metering_declines_total", "code"), "{{code}}")),
        lines("Not booked", "none", (total("metering_stripe_not_booked_total", "reason"), "{{reason}}")),
        lines(
            "Oldest open charge", "s", ("max by (kind) (metering_attempts_oldest_open_seconds)", "{{kind}}")
        ),
    ):
        board = board.with_panel(panel)

    board = board.with_row(Row("Servers and processes"))
    memory = 'max by (service) (process_resident_memory_bytes{job="metering"})'
    for panel in (
        lines(
            *("Connections to Postgres in use", "percentunit"),
            (
                "max by (pool) (metering_postgres_connections_in_use / metering_postgres_connections_limit)",
                "{{pool}}",
            ),
            about="Of a pool's limit, in the process that uses most.",
        ),
        lines(
            *("Valkey's memory", "bytes"),
            ("max(metering_valkey_memory_bytes)", "used"),
            ("max(metering_valkey_memory_limit_bytes) or vector(0)", "limit"),
            about="When the limit is reached Valkey takes no more calls. 0: it has none.",
        ),
        lines(
            "Memory of the processes",
            "bytes",
            (memory, "{{service}}"),
        ),
        lines("Since the last audit", "s", ("min by (scope) (metering_audit_age_seconds)", "{{scope}}")),
    ):
        board = board.with_panel(panel)
    return board


def business() -> Dashboard:
    """What is earned, and who is in the way of it, for who owns it."""
    board = _board("Metering: business", "metering-business", "24h")
    board = board.with_row(Row("In the time that is shown"))
    dollars = f"{total('metering_debited_cents_total')} / 100"
    for panel in (
        number("Debited for calls", "currencyUSD", (dollars, "USD")),
        number("Minutes billed", "none", (f"{total('metering_billed_seconds_total')} / 60", "minutes")),
        number(
            "Calls debited",
            "none",
            ('sum(increase(metering_events_total{outcome="debited"}[$__range]))', "calls"),
        ),
    ):
        board = board.with_panel(panel)
    board = board.with_row(Row("Now"))
    for panel in (
        number("All balances", "currencyUSD", ("sum(max by (sign) (metering_balances_cents)) / 100", "USD")),
        number(
            "Orgs", "none", ("max(metering_orgs)", "orgs"), ("max(metering_gates_exhausted)", "exhausted")
        ),
        number(
            "Orgs with auto-reload",
            "none",
            ("max(metering_auto_reload_orgs)", "enabled"),
            (f"sum(max by (code) ({PAUSED})) or vector(0)", "paused"),
        ),
    ):
        board = board.with_panel(panel)
    board = board.with_row(Row("Over time"))
    skipped = "metering_auto_reload_skipped_total"
    cents, seconds = "metering_debited_cents_total", "metering_billed_seconds_total"
    for graph in (
        lines(
            "Minutes per minute, by tier",
            "none",
            (rate(seconds, "tier"), "{{tier}}"),
            about="As many calls as run at once, on average.",
        ),
        lines("Debited per hour, by tier", "currencyUSD", (f"{rate(cents, 'tier')} * 36", "{{tier}}")),
        lines(
            "Debited per hour, by direction",
            "currencyUSD",
            (f"{rate(cents, 'direction')} * 36", "{{direction}}"),
        ),
        lines(
            *("All balances", "currencyUSD", ("max by (sign) (metering_balances_cents) / 100", "{{sign}}")),
            about="Positive: paid and not used. Negative: used and not paid.",
        ).min(-1),
        lines("Exhausted orgs", "none", ("max(metering_gates_exhausted)", "exhausted")),
        lines(
            "Auto-reloads by outcome",
            "ops",
            (rate("metering_auto_reload_attempts_total", "outcome"), "{{outcome}}"),
        ),
        lines(
            "Top-ups by outcome", "ops", (rate("metering_top_up_attempts_total", "outcome"), "{{outcome}}")
        ),
        lines(
            "Reloads that began to wait, by reason",
            "ops",
            (rate(skipped, "reason"), "{{reason}}"),
        ),
        lines("Paused reloads by code", "none", (f"max by (code) ({PAUSED})", "{{code}}")),
        lines(
            "Declines by kind and code",
            "ops",
            (rate("metering_declines_total", "kind, code"), "{{kind}} {{code}}"),
        ),
        lines("Open charges", "none", ("max by (kind) (metering_attempts_open)", "{{kind}}")),
    ):
        board = board.with_panel(graph)
    return board


def _board(title: str, uid: str, since: str) -> Dashboard:
    board = Dashboard(title).uid(uid).tags(["metering"]).readonly().timezone("browser")
    return board.time(f"now-{since}", "now").refresh("30s")


def rendered() -> dict[str, str]:
    """By file: what stands in it."""
    boards = {"operations.json": operations(), "business.json": business()}
    return {
        name: JSONEncoder(indent=2, sort_keys=True).encode(board.build()) + "\n"
        for name, board in boards.items()
    }


def queries(dashboard: dict[str, Any]) -> list[tuple[str, str]]:
    """Every query of a dashboard as Grafana reads it, with its panel's title."""
    return [
        (panel["title"], target["expr"])
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    ]


def main() -> None:
    """Write them."""
    for name, text in rendered().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        print(f"{name}: {len(queries(json.loads(text)))} queries")  # noqa: T201 - for whoever makes them


if __name__ == "__main__":
    main()
