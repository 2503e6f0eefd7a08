"""`metering bench` measures what it says, and leaves nothing behind."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from inspect import signature
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import create_engine, make_url

from metering.cli.meter import meter
from metering.trials.bench import fixture, run
from metering.trials.bench.fixture import require_durability
from metering.trials.bench.rate import MeasuringError
from metering.trials.bench.run import Result
from tests.cli.conftest import Cli
from tests.conftest import Database
from workers.meter import BATCH_LIMIT


@pytest.mark.long
@pytest.mark.timeout(400)
def test_bench_measures_and_leaves_nothing_behind(data_dir: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-P", "-m", "metering", "bench", "--json", "--jobs"),
            *("--events", "12000", "--orgs", "20", "--repeat", "1"),
        ],
        env=os.environ | {"METERING_DATA_DIR": str(data_dir)},
        capture_output=True,
        check=True,
        timeout=380,
    )
    result = json.loads(done.stdout)
    measured, baselines = result["throughput"]["measured"], result["throughput"]["baselines"]
    first = measured[0]["per_second"]["median"]
    assert [each["workload"]["traffic"] for each in measured] == [
        "uniform",
        "uniform",
        "zipf",
        "single",
        "uniform",
    ]
    assert first > baselines["one_message_per_call"]["median"] > 0
    assert first > baselines["one_transaction_per_call"]["median"] > 0
    ratios = result["ratios"]
    assert ratios["to_tpcb"] == pytest.approx(first / baselines["tpcb"]["median"], rel=0.01)
    assert ratios["to_raw_copy"] == pytest.approx(first / baselines["raw_copy"]["median"], rel=0.05)
    assert result["throughput"]["debit"]["wal_bytes"] > result["throughput"]["debit"]["table_bytes"] > 100
    lone, latency = result["latency"]["lone"], result["latency"]["at_share"][0]
    assert 0 < lone["commit"]["p50_ms"] < lone["gate"]["p50_ms"]
    assert latency["per_second"] > lone["per_second"]
    assert result["reads"]["sweep_s"] > 0
    assert result["reads"]["hget"]["count"] > 0
    assert [read["took"]["count"] for read in result["reads"]["http"]] == [3_000] * 3
    assert result["long"] is None
    assert list(data_dir.iterdir()) == []


def test_a_part_that_is_not_there_is_refused(offline: Cli) -> None:
    assert offline.fail("bench", "--part", "speed") == (
        "--part: must be one of throughput, latency, reads, batches, long, ledger."
    )


def test_what_was_measured_is_told_before_what_failed(offline: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(_bed: object, _plan: object, result: Result, _report: object) -> None:
        result.machine = {"cpus": 2}
        raise MeasuringError("The second part broke.")

    monkeypatch.setattr(fixture, "making_fixture", lambda _: nullcontext())
    monkeypatch.setattr(run, "run_benchmark", measure)
    failed = offline.run("bench", "--json", status=1)
    assert json.loads(failed.stdout)["machine"] == {"cpus": 2}
    assert "The second part broke." in failed.stderr


def test_a_limit_that_is_shown_is_the_meter_s_own() -> None:
    """Written again, so that --help needs nothing of a meter."""
    assert signature(meter).parameters["batch_limit"].default == BATCH_LIMIT


def test_a_postgres_that_may_lose_commits_is_not_measured(database: Database, synced: None) -> None:
    require_durability(database.engine)
    url = make_url(database.admin_url)
    with psycopg.connect(url.set(drivername="postgresql").render_as_string(hide_password=False)) as admin:
        admin.execute(f'ALTER DATABASE "{url.database}" SET synchronous_commit = off'.encode())
    careless = create_engine(database.url)  # our own engines set it by themselves
    try:
        with pytest.raises(MeasuringError, match="synchronous_commit = off"):
            require_durability(careless)
    finally:
        careless.dispose()
