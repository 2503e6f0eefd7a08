"""deploy/prometheus/alerts.yml asks for metrics that there are, and says what to do."""

import re
from typing import Any

import pytest
import typer.main
import yaml

from metering.cli.main import app
from tests.deploy.composed import ROOT
from tests.docs.pages import page
from tests.docs.test_metrics import NAMED

RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))[
        "groups"
    ]
    for rule in group["rules"]
]


def test_each_alert_has_its_paragraph() -> None:
    named = re.findall(r"^### (\w+)\n\n(?=[A-Z])", page("how-to/alerts.md"), re.MULTILINE)
    assert sorted(named) == sorted(rule["alert"] for rule in RULES)


def test_what_must_never_be_is_alerted_on() -> None:
    broken = next(rule for rule in RULES if rule["alert"] == "MeteringInvariantBroken")
    assert broken["expr"] == "max by (invariant) (metering_invariant_violations) > 0"
    assert "for" not in broken
    unaudited = next(rule for rule in RULES if rule["alert"] == "MeteringNotAudited")
    assert "absent(" in unaudited["expr"]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_a_rule_is_about_metrics_that_there_are(rule: dict[str, Any]) -> None:
    named = set(re.findall(r"metering_\w+", rule["expr"]))
    assert named
    for name in named:
        assert {name, re.sub(r"_(count|sum|bucket)$", "", name)} & NAMED.keys(), name
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert rule["annotations"].keys() == {"summary", "description"}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_a_command_that_a_rule_tells_of_exists(rule: dict[str, Any]) -> None:
    for words in re.findall(r"run --rm operator ([a-z ]+)`", rule["annotations"]["description"]):
        command: Any = typer.main.get_command(app)
        for word in words.split():
            command = command.commands[word]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_a_number_is_told_as_people_say_it(rule: dict[str, Any]) -> None:
    """`increase` gives 5.007 for five; only whole numbers, and durations, are told."""
    for told in re.findall(r"{{(.*?)}}", " ".join(rule["annotations"].values())):
        assert "$value" not in told or told.strip() in {'printf "%.0f" $value', "$value | humanizeDuration"}
