"""While a transaction is open nothing is said to Redis: every test here is watched for it, and this is the watch's own test."""

from db.postgres.engine import transaction
from tests.workers.calls import assert_billed, make_calls
from tests.workers.processes import Site


def test_what_is_said_inside_a_transaction_is_noticed(
    site: Site, said_inside_a_transaction: list[bytes]
) -> None:
    with transaction(site.engine):
        site.client.get("a command")
        with site.client.pipeline(transaction=True) as pipeline:
            pipeline.get("a pipeline")
            pipeline.execute()
        site.client.register_script("return 'a script'")()
    assert len(said_inside_a_transaction) >= 3
    for what in (b"a command", b"a pipeline", b"EVALSHA"):
        assert any(what in command for command in said_inside_a_transaction)
    said_inside_a_transaction.clear()


def test_a_meter_is_silent_inside_its_transactions(
    site: Site, said_inside_a_transaction: list[bytes]
) -> None:
    events = make_calls(200, seed=71)
    site.push(events)
    site.drain("m", batch_limit=20)
    assert_billed(site.engine, site.client, events)
    assert said_inside_a_transaction == []
