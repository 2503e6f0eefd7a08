"""Commands on a machine whose clock is wrong: they store Postgres's time."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from db.postgres.engine import transaction
from metering.runtime.clock import ENVIRONMENT_VARIABLE
from tests.cli.conftest import Cli
from tests.conftest import Database
from tests.stored_times import stored_times


@pytest.mark.long
@pytest.mark.parametrize("by", [timedelta(days=30), -timedelta(days=30)])
def test_no_command_stores_its_machines_time(
    cli: Cli, database: Database, tmp_path: Path, by: timedelta
) -> None:
    offset = tmp_path / "offset"
    offset.write_text(str(by.total_seconds()), encoding="ascii")
    astray = Cli({**cli.settings, ENVIRONMENT_VARIABLE: str(offset)})

    def run(*arguments: str) -> None:
        done = astray.process(*arguments)
        assert done.returncode == 0, done.stderr

    run("tier", "set", "bolt", "0.08")
    run("tier", "set", "bolt", "0.07")
    run("org", "create", "one")
    run("key", "create", "1")
    run("key", "revoke", "1")
    run("adjust", "1", "--cents", "500", "--reason", "goodwill", "--key", "k")
    with transaction(database.engine) as connection:
        connection.exec_driver_sql(
            "INSERT INTO rejected_events (stream_id, reason, detail, raw, raw_length_bytes, raw_sha256, received_at)"
            " VALUES ('1-1', 'malformed_json', '', '', 0, '', metering_now())"
        )
    run("rejected", "replay", "1")

    with transaction(database.engine) as connection:
        times = list(stored_times(connection))
    assert {name.partition(".")[0] for name, _ in times} >= {
        "accounts",
        "api_keys",
        "prices",
        "transactions",
    }
    near = datetime.now(UTC) - timedelta(minutes=5), datetime.now(UTC) + timedelta(minutes=5)
    assert [(name, at) for name, at in times if not near[0] < at < near[1]] == []
