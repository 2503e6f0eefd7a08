"""The alert rules by Prometheus's own tools: they are read, and each fires where it should and not where it shouldn't."""

from typing import Any, Final

import pytest
import yaml

from tests.deploy.composed import ROOT
from tests.deploy.test_alerts import RULES
from tests.monitoring.prometheus import promtool

ALERTS: Final = ROOT / "deploy" / "prometheus" / "alerts.yml"
CASES: Final = ROOT / "tests" / "monitoring" / "alerts.test.yml"

NAMES: Final = sorted(rule["alert"] for rule in RULES)


def cases(name: str) -> list[Any]:
    """What is asked of an alert: which of it should fire, by case."""
    tests: list[Any] = yaml.safe_load(CASES.read_text(encoding="utf-8"))["tests"]
    return [
        asked["exp_alerts"]
        for test in tests
        for asked in test["alert_rule_test"]
        if asked["alertname"] == name
    ]


@pytest.mark.parametrize("name", NAMES)
def test_each_alert_is_seen_firing_and_silent(name: str) -> None:
    assert any(cases(name)), "firing"
    assert not all(cases(name)), "silent"


@pytest.mark.long
def test_promtool_takes_rules_and_configuration() -> None:
    assert f"{len(RULES)} rules found" in promtool("check", "rules", str(ALERTS))
    promtool("check", "config", "--syntax-only", str(ALERTS.parent / "prometheus.yml"))


@pytest.mark.long
def test_each_alert_fires_where_it_should_and_not_where_it_should_not() -> None:
    assert "SUCCESS" in promtool("test", "rules", str(CASES))
