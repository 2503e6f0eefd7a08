"""The alert rules with minutes made seconds, so that each can be seen firing for real within a test.

What is changed: `for:` and the ranges of rates, `[15m]`, are a sixtieth, the ranges from 5 to 20 seconds. What a rule compares,
ages among it, stays as it is: the condition itself has to come about.
"""

import re
from typing import Any, Final

import yaml

from tests.deploy.composed import ROOT

UNITS_S: Final = {"s": 1, "m": 60, "h": 3_600}
FACTOR: Final = 60
SHORTEST_S: Final = 5
LONGEST_S: Final = 20
"""Of a range: with a scrape each second, a rate over less would often have nothing to go by; and over more only takes longer."""


def quickened() -> dict[str, Any]:
    """deploy/prometheus/alerts.yml, so changed."""
    rules: dict[str, Any] = yaml.safe_load(
        (ROOT / "deploy/prometheus/alerts.yml").read_text(encoding="utf-8")
    )
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule["expr"] = re.sub(r"\[(\d+)([smh])\]", lambda match: f"[{_short_s(match)}s]", rule["expr"])
            if "for" in rule:
                rule["for"] = re.sub(r"^(\d+)([smh])$", lambda match: f"{_seconds(match)}s", rule["for"])
    return rules


def _seconds(match: re.Match[str]) -> int:
    return max(int(match[1]) * UNITS_S[match[2]] // FACTOR, 1)


def _short_s(match: re.Match[str]) -> int:
    return min(max(_seconds(match), SHORTEST_S), LONGEST_S)
