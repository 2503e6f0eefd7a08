"""Lets those tests of a mutant run first that will most likely kill it. A plugin of pytest's, which `make mutate` loads."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.mutation.failures import CLEAN_FAILURES

STATS: Final = Path("mutmut-stats.json")
"""How long mutmut has seen each test take, in the folder in which it runs them."""
KILLS: Final = Path("kills.txt")
"""Which test killed which mutant, a line each."""


def _mutant() -> str:
    return os.environ.get("MUTANT_UNDER_TEST", "")


def _kills() -> Iterator[tuple[str, str]]:
    if KILLS.exists():
        for line in KILLS.read_text(encoding="utf-8").splitlines():
            mutant, _, test = line.partition("\t")
            yield mutant, test


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What killed others of the function first, then others of the module, then by the time that it takes."""
    function, module = _mutant().partition("__mutmut_")[0], _mutant().rpartition(".")[0]
    of_function, of_module = Counter[str](), Counter[str]()
    for mutant, test in _kills():
        of_function[test] += mutant.partition("__mutmut_")[0] == function
        of_module[test] += mutant.rpartition(".")[0] == module
    took_s: dict[str, float] = {}
    if STATS.exists():
        took_s = json.loads(STATS.read_text(encoding="utf-8"))["duration_by_test"]
    items.sort(
        key=lambda item: (-of_function[item.nodeid], -of_module[item.nodeid], took_s.get(item.nodeid, 0.0))
    )


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note which test has killed the mutant, or failed without any."""
    if report.failed and "__mutmut_" in _mutant():
        with KILLS.open("a", encoding="utf-8") as kills:
            kills.write(f"{_mutant()}\t{report.nodeid}\n")
    elif report.failed:
        with CLEAN_FAILURES.open("a", encoding="utf-8") as failures:
            failures.write(f"{report.nodeid}\n{report.longreprtext}\n\n")
