"""docs/how-to/operations.md names only what there is."""

import re
from fnmatch import fnmatchcase
from typing import Any

import redis
import typer.main
from prometheus_client import REGISTRY

from metering.api import watch
from metering.cli.main import app
from metering.payments import metrics as payments_metrics
from metering.payments.events import HANDLED
from metering.runtime.settings import Settings
from tests.deploy.composed import METRICS_PORT, ROOT, compose_file, references
from workers.audit_job import INVARIANT_VIOLATIONS
from workers.metrics import BacklogCollector

TEXT = (ROOT / "docs" / "how-to" / "operations.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `.*$", TEXT, re.MULTILINE)
SERVICES: dict[str, Any] = compose_file()["services"]
LIMITS = ("top_up_min_cents", "top_up_max_cents")


def named(pattern: str) -> set[str]:
    """What the tables' first cells name, of one kind."""
    return {name for row in ROWS for name in re.findall(pattern, row.split("|")[1])}


def test_every_setting_is_in_the_table_with_its_default() -> None:
    stripes = {name for name in Settings.model_fields if name.startswith("stripe_")}
    assert named(r"`METERING_(\w+)`") == {name.upper() for name in set(Settings.model_fields) - stripes}
    assert named(r"`(STRIPE_\w+)`") == {name.upper() for name in stripes}
    for name in ("data_dir", "metrics_host", "metrics_port", "http_host", "http_port", *LIMITS):
        default = Settings.model_fields[name].default
        assert f"| `METERING_{name.upper()}` | `{default}` |" in TEXT


def test_every_variable_of_the_compose_file_is_in_the_table_with_its_default() -> None:
    for name, operator, operand in references(SERVICES):
        default = "required" if operator == ":?" else f"`{operand}`" if operand else "unset"
        assert f"| `{name}` | {default} |" in TEXT
    known = {name for name, _, _ in references(SERVICES)}
    assert named(r"`(\w+_PASSWORD)`") == {name for name in known if name.endswith("_PASSWORD")}
    assert named(r"`((?:POSTGRES|VALKEY)_\w+)`") == {
        name for name in known if re.match("POSTGRES|VALKEY", name)
    }


def test_every_service_is_in_the_table() -> None:
    assert set(SERVICES) <= named(r"`(\w+)`")


def test_every_metric_is_in_the_table() -> None:
    for imported in (payments_metrics.RELOAD_ATTEMPTS, watch.REQUESTS, INVARIANT_VIOLATIONS):
        assert imported in REGISTRY._collector_to_names  # and so registered
    backlog = BacklogCollector(redis.Redis())  # it only describes; nothing connects
    metrics = [metric for each in (REGISTRY.collect(), backlog.describe()) for metric in each]
    ours = {
        metric.name + ("_total" if metric.type == "counter" else "")
        for metric in metrics
        if metric.name.startswith("metering_")
    }
    assert named(r"`(metering_\w+)") == ours
    assert f"port: {METRICS_PORT}" in TEXT


def test_every_event_that_is_handled_is_asked_for() -> None:
    kinds = re.findall(r"`([a-z_.]+(?:\.\*|\.[a-z_]+))`", TEXT.split("## Stripe")[1].split("## Scale")[0])
    for handled in HANDLED:
        assert any(fnmatchcase(handled, kind) for kind in kinds), handled


def test_every_command_exists() -> None:
    root: Any = typer.main.get_command(app)
    lines = re.findall(r"docker compose (?:exec|run --rm)(?: -T)? (\w+)(?: metering)?(?: (.*?))?[`\n]", TEXT)
    assert len(lines) > 5
    for service, words in lines:
        assert service in SERVICES
        if service in {"postgres", "valkey"}:
            continue
        command = root
        for word in words.split():
            if not hasattr(command, "commands"):
                break
            command = command.commands[word]
