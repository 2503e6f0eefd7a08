"""Text in the ledger is what the event and the price say, whatever encoding the surroundings have set."""

import json

import pytest
from sqlalchemy import make_url

from tests.conftest import Database
from tests.db import execute_as
from tests.spine.billing import debits, event, rejections
from tests.workers.calls import ORG_IDS
from tests.workers.processes import Site

NUMBER = "Zürich ×"


@pytest.mark.parametrize("way", ["environment", "database"])
def test_text_goes_as_utf8(site: Site, database: Database, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    if way == "environment":
        monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    else:
        name = make_url(database.url).database
        execute_as(database.admin_url, f"ALTER DATABASE {name} SET client_encoding = 'LATIN1'")
    call = event(org_id=ORG_IDS[0], phone_number_value=NUMBER, metadata={"city": "Zürich"})
    raw = json.dumps(call, ensure_ascii=False).encode()
    for _ in range(2):  # the second time it is compared with what was written
        site.push([raw])
        site.drain("m")
    site.engine.dispose()
    (debit,) = debits(site.engine)
    assert debit.description == "Call billing: 2 minutes × $0.08"
    assert debit.phone_number_value == NUMBER
    assert debit.metadata == {"city": "Zürich"}
    assert rejections(site.engine) == []
