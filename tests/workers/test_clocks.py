"""A machine whose clock is wrong: what it runs bills as ever, at Postgres's time, and says that something is wrong."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text

from db.ledger.rejections import list_rejected
from db.postgres.engine import transaction
from metering.runtime.clock import ENVIRONMENT_VARIABLE
from tests.spine.billing import event
from tests.workers.calls import ORG_IDS
from tests.workers.processes import MeterProcess, Site, wait_until

HOUR = timedelta(hours=1)
ORG_ID = ORG_IDS[0]
NEAR = timedelta(seconds=60)


def astray(tmp_path: Path, by: timedelta) -> dict[str, str]:
    """The setting of a process whose clock is ahead by so much."""
    path = tmp_path / f"clock-{by.total_seconds()}"
    path.write_text(str(by.total_seconds()), encoding="ascii")
    return {ENVIRONMENT_VARIABLE: str(path)}


def call(call_id: int, *, ended: timedelta = timedelta()) -> bytes:
    """A call that ends so much later than now."""
    ended_at = (datetime.now(UTC) + ended).isoformat()
    return json.dumps(event(call_id=call_id, org_id=ORG_ID, ended_at=ended_at)).encode()


def posted(site: Site) -> list[datetime]:
    with transaction(site.engine) as connection:
        of_org = text("SELECT created_at FROM transactions WHERE org_id = :org_id ORDER BY id")
        return list(connection.scalars(of_org, {"org_id": ORG_ID}))


def rejected(site: Site) -> list[str]:
    with transaction(site.engine) as connection:
        return [each.detail for each in list_rejected(connection, limit=10)[0]]


def end_at_once(meter: MeterProcess) -> None:
    meter.send(signal.SIGTERM)
    assert meter.wait() == 0


@pytest.mark.long
@pytest.mark.parametrize("by", [-HOUR, HOUR, timedelta(days=30)])
def test_a_meter_bills_what_ends_now_whatever_its_clock_says(
    site: Site, tmp_path: Path, by: timedelta
) -> None:
    """By an hour that it is behind, a call that has just ended would lie in the future."""
    meter = site.start("m", settings=astray(tmp_path, by))
    site.push([call(1), call(2, ended=timedelta(minutes=10)), call(3, ended=timedelta(minutes=4))])
    wait_until(site.drained, "billing")
    assert len(posted(site)) == 2
    assert all(abs(at - datetime.now(UTC)) < NEAR for at in posted(site))
    assert [
        re.match(r"ended_at must be .* 5 minutes ahead", detail) is not None for detail in rejected(site)
    ] == [True]
    end_at_once(meter)


@pytest.mark.long
def test_an_adjustment_from_a_machine_that_is_a_month_ahead_dates_no_debit_wrong(
    site: Site, tmp_path: Path
) -> None:
    adjust = [str(ORG_ID), "--cents", "500", "--reason", "goodwill", "--key", "k-1"]
    run(site, astray(tmp_path, timedelta(days=30)), "adjust", *adjust)
    meter = site.start("m")
    site.push([call(1)])
    wait_until(lambda: len(posted(site)) == 2, "billing")
    assert all(abs(at - datetime.now(UTC)) < NEAR for at in posted(site))
    end_at_once(meter)


def run(site: Site, settings: Mapping[str, str], *arguments: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("METERING_")}
    urls = {"METERING_DATABASE_URL": site.database_url, "METERING_REDIS_URL": site.redis_url}
    subprocess.run(
        [sys.executable, "-P", "-m", "metering", *arguments],
        env=environment | urls | dict(settings),
        check=True,
        capture_output=True,
    )


@pytest.mark.long
@pytest.mark.parametrize(("by", "well"), [(timedelta(seconds=20), True), (-HOUR, False), (HOUR, False)])
def test_a_role_whose_clock_is_wrong_says_so_and_is_unhealthy(
    site: Site, tmp_path: Path, by: timedelta, well: bool
) -> None:
    meter = site.start("m", settings=astray(tmp_path, by) | {"METERING_METRICS_PORT": "0"})
    wait_until(lambda: meter.said("metrics are served"), "starting")
    metrics_url = meter.said("metrics are served")[0]["url"]
    sample = re.compile(r"^metering_clock_difference_seconds (\S+)$", re.MULTILINE)
    wait_until(lambda: sample.search(httpx.get(metrics_url).text), "measuring")
    told = sample.search(httpx.get(metrics_url).text)
    assert told is not None
    assert abs(float(told[1]) - by.total_seconds()) < 5
    health = httpx.get(metrics_url.replace("/metrics", "/healthz"))
    assert health.status_code == (200 if well else 503)
    assert ("clock" in health.text) is not well
    end_at_once(meter)
    complaints = [
        line for line in meter.log_path.read_text().splitlines() if "differ by more than 30 s" in line
    ]
    assert bool(complaints) is not well
