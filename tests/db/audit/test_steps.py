"""What somebody may do to debits that were priced by steps, and to what was used, and what the audit says of it."""

from datetime import timedelta

from db.audit.full import run_audit
from tests.conftest import Database
from tests.db import execute_as
from tests.db.audit.damages import RESTORE, UNPROTECT
from tests.db.audit.ledger import make_orgs
from tests.db.ledger.test_stepped_debits import MAY, PLAIN, bill, call, put, stepped

HUGE = str(2**63 - 1)

# Calls 1 to 5 of org 1: none by steps; then 2 of 3 minutes included; across both steps; at the last; across the month's end.
DAMAGES: dict[str, tuple[str, set[str]]] = {
    "nothing": ("", set()),
    "what was used before": (
        "UPDATE transactions SET used_before_s = used_before_s + 60 WHERE call_id = 4",
        {"used_before"},
    ),
    "what was used before, such that it costs otherwise": (
        "UPDATE transactions SET used_before_s = 0 WHERE call_id = 3",
        {"used_before", "debit_priced_again", "description_matches"},
    ),
    "no longer known what was used before": (
        "UPDATE transactions SET used_before_s = NULL WHERE call_id = 4",
        {"used_before", "debit_priced_again", "description_matches"},
    ),
    "a step's end": (
        "UPDATE transactions SET steps = '{240,0,600,100000,50000}' WHERE call_id = 3",
        {"debit_priced_again", "description_matches", "price_in_force"},
    ),
    "a step's rate": (
        "UPDATE transactions SET steps = '{300,0,600,100001,50000}' WHERE call_id = 4",
        {"price_in_force"},
    ),
    "steps that can't be": (
        "UPDATE transactions SET steps = '{300,0,200,HUGE,50000}', used_before_s = HUGE WHERE call_id = 3".replace(
            "HUGE", HUGE
        ),
        {"used_before", "debit_priced_again", "description_matches", "price_in_force"},
    ),
    "steps without an end": (
        "UPDATE transactions SET steps = '{300,0}' WHERE call_id = 3",
        {"debit_priced_again", "description_matches", "price_in_force"},
    ),
    "no steps at all": (
        "UPDATE transactions SET steps = NULL, used_before_s = NULL WHERE call_id = 2",
        {"debit_priced_again", "description_matches", "price_in_force"},
    ),
    "used before without steps": (
        "UPDATE transactions SET used_before_s = 0 WHERE call_id = 1",
        {"debit_priced_again"},
    ),
    "a description": (
        "UPDATE transactions SET description = replace(description, '1 included', '2 included') WHERE call_id = 3",
        {"description_matches"},
    ),
    "what is counted as used": (
        "UPDATE monthly_usage SET billable_seconds = billable_seconds - 60",
        {"usage_is_sum"},
    ),
    "nothing counted": ("DELETE FROM monthly_usage WHERE month = '2026-06-01'", {"usage_is_sum"}),
    "counted for nobody": (
        "INSERT INTO monthly_usage VALUES (2, 'bolt', '2026-05-01', 60)",
        {"usage_is_sum"},
    ),
    "a price's steps": (
        "UPDATE prices SET steps = '{300,0,600,1,50000}' WHERE steps IS NOT NULL",
        {"price_in_force"},
    ),
}


def test_each_damage_is_named(database: Database) -> None:
    engine = database.engine
    make_orgs(engine, 1, 2)
    day = timedelta(days=1)
    put(engine, PLAIN, stepped("5:0", "10:0.10", ":0.05", start=MAY + day))
    bill(engine, [call(1, MAY, 2), call(2, MAY + day, 2), call(3, MAY + day, 7)])
    bill(engine, [call(4, MAY + day, 2), call(5, MAY + 31 * day, 4)])
    execute_as(database.admin_url, UNPROTECT, "CREATE TABLE undamaged_usage AS TABLE monthly_usage")
    for name, (script, breaks) in DAMAGES.items():
        execute_as(database.admin_url, *[script] * bool(script))
        found = {violation.invariant for violation in run_audit(engine).violations}
        assert found - {"balance_is_sum"} == breaks, name
        execute_as(
            database.admin_url,
            RESTORE,
            "DELETE FROM monthly_usage; INSERT INTO monthly_usage TABLE undamaged_usage",
        )
    assert run_audit(engine).passed
