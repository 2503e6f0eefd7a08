"""The org that a rejected event's bytes name is the same to Python as to the index by which such events are found."""

from sqlalchemy import bindparam, select, text

from db.models.rejected_event import NAMED_ORG
from metering.rules.rejections import named_org
from tests.conftest import Database

RAWS = {
    b'{"org_id":42,"call_id":7}': 42,
    b'{"call_id":7, "org_id" \t:\r\n "42"}': 42,
    b'{"org_id":9223372036854775807}': 2**63 - 1,
    b'not json, but "org_id": 42': 42,
    b'\xff\x00\xc3\xa9\\ "org_id":42': 42,
    b'{"org_id":1,"org_id":2}': 1,
    b'{"org_id":12345678901234567890}': 1234567890123456789,
    b'{"org_id":-1}': None,
    b'{"org_id":\xc2\xa042}': None,
    b'{"ORG_ID":42}': None,
    b'{"organisation":42}': None,
    b"": None,
}


def test_python_and_postgres_read_the_same(database: Database) -> None:
    with database.engine.connect() as connection:
        for raw, org_id in RAWS.items():
            assert named_org(raw) == org_id, raw
            event = select(bindparam("raw", raw).label("raw")).subquery()
            found = connection.scalar(select(text(str(NAMED_ORG))).select_from(event))
            assert (None if found is None else int(found)) == org_id, raw
