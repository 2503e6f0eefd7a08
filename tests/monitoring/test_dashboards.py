"""The dashboards: their files are what the code makes, and each query gives data where roles work."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.composed import ROOT
from tests.deploy.stack import clean_environment
from tests.docs.test_metrics import NAMED
from tests.monitoring.dashboards import FOLDER, queries, rendered
from tests.monitoring.prometheus import Prometheus, prometheus
from tests.waiting import wait_until

BOARDS: dict[str, Any] = {name: json.loads(text) for name, text in rendered().items()}
QUERIES = [(name, *query) for name, board in BOARDS.items() for query in queries(board)]
PROCESS = {"process_resident_memory_bytes"}


def test_the_files_are_what_the_code_makes() -> None:
    """If not: `make dashboards`."""
    assert {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()} == rendered()


def test_a_dashboard_asks_the_data_source_that_is_provisioned() -> None:
    provisioned = (ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text()
    assert "uid: prometheus\n" in provisioned
    for board in BOARDS.values():
        for panel in board["panels"]:
            for each in (panel, *panel.get("targets", ())):
                assert panel["type"] == "row" or each["datasource"]["uid"] == "prometheus"


@pytest.mark.parametrize(("board", "panel", "expression"), QUERIES)
def test_a_query_is_about_metrics_that_there_are(board: str, panel: str, expression: str) -> None:
    named = set(re.findall(r"(?:metering|process)_\w+", expression))
    assert named, (board, panel)
    for name in named - PROCESS:
        assert {name, re.sub(r"_(count|sum|bucket)$", "", name)} & NAMED.keys(), name


def asked(expression: str) -> str:
    """As Grafana sends it, for some seconds of a run."""
    return expression.replace("$__rate_interval", "60s").replace("$__range", "120s")


def data_of(server: Prometheus, expression: str) -> list[float]:
    """The values that a query gives; those that are no number left out, as Grafana leaves them out."""
    values = [float(each["value"][1]) for each in server.query(asked(expression))]
    return [value for value in values if value == value]  # noqa: PLR0124 - not NaN


@pytest.mark.long
@pytest.mark.timeout(400)
def test_every_query_gives_data_while_the_demo_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Simulated telephony, customers and their cards; the roles are those of the product, as is what they export."""
    first_port = 23_100 + os.getpid() % 500 * 10
    environment = clean_environment(
        {
            "METERING_DATA_DIR": str(tmp_path / "data"),
            "METERING_METRICS_PORT": str(first_port),
            "PYTHONPATH": os.pathsep.join(sys.path[:1]),
        }
    )
    targets = {"meter": [first_port, first_port + 1], "jobs": [first_port + 2], "api": [first_port + 3]}
    with (tmp_path / "demo.log").open("wb") as log:
        demo = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "metering",
                "demo",
                "--seconds",
                "300",
                "--rate",
                "60",
                "--seed",
                "7",
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        with prometheus(tmp_path / "prometheus", targets) as server:
            wait_until(lambda: server.up() == 4, limit_s=120, every_s=0.5)
            left = {(board, panel, expression) for board, panel, expression in QUERIES}

            def all_give_data() -> bool:
                nonlocal left
                assert demo.poll() is None, (tmp_path / "demo.log").read_text()[-3_000:]
                left = {each for each in left if not data_of(server, each[2])}
                return not left

            try:
                wait_until(all_give_data, limit_s=180, every_s=2)
            except AssertionError:
                raise AssertionError(f"without data: {sorted(left)}") from None
            with capsys.disabled():
                print()  # noqa: T201
                for board, panel, expression in QUERIES:
                    values = data_of(server, expression)
                    shown = ", ".join(f"{value:.4g}" for value in values[:4])
                    print(f"{board:16} {panel:36} {len(values):3} series: {shown}")  # noqa: T201
    finally:
        demo.terminate()
        demo.wait(90)
