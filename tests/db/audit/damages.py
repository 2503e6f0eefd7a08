"""What somebody may do to a ledger by hand, and what the audit must say of it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Damage:
    """What somebody does to the ledger by hand, and exactly the invariants that break by it."""

    name: str
    script: str
    breaks: set[str]
    org_id: int | None = 1
    rebalanced: bool = False


# What a forger does who knows of balances: every balance made to fit the amounts again.
REBALANCE = """
    UPDATE transactions SET balance_after_cents = step.balance_cents
    FROM (SELECT org_id, id, sum(amount_cents) OVER (PARTITION BY org_id ORDER BY id) AS balance_cents FROM transactions) AS step
    WHERE (transactions.org_id, transactions.id) = (step.org_id, step.id);
    UPDATE accounts SET
        balance_cents = coalesce((SELECT sum(amount_cents) FROM transactions WHERE org_id = accounts.org_id), 0),
        transaction_count = (SELECT count(*) FROM transactions WHERE org_id = accounts.org_id),
        last_posted_at = (SELECT max(created_at) FROM transactions WHERE org_id = accounts.org_id);
"""
COPY_OF_CALL_105 = """
    INSERT INTO transactions (org_id, kind, amount_cents, balance_after_cents, created_at, description, call_id, tier,
        duration_us, ended_at, billable_seconds, rate_microusd_per_minute, increment_first_s, increment_next_s, minimum_s,
        connect_fee_microusd)
    SELECT {org_id}, 'debit', amount_cents, balance_after_cents, created_at, description, {call_id}, tier,
        duration_us, ended_at, billable_seconds, rate_microusd_per_minute, increment_first_s, increment_next_s, minimum_s,
        connect_fee_microusd
    FROM transactions WHERE org_id = 1 AND call_id = 105
"""
# What keeps damage out, taken away; and what brings back the rows that were there then.
UNPROTECT = """
    ALTER TABLE transactions DISABLE TRIGGER USER;
    ALTER TABLE accounts DISABLE TRIGGER USER;
    ALTER TABLE prices DISABLE TRIGGER USER;
    ALTER TABLE payment_attempts DISABLE TRIGGER USER;
    ALTER TABLE stripe_customers DISABLE TRIGGER USER;
    DROP INDEX payment_attempts_open_reload_key;
    ALTER TABLE transactions DROP CONSTRAINT transactions_kind_check;
    DROP INDEX transactions_call_key, transactions_source_key, transactions_credit_key;
    CREATE TABLE undamaged_transactions AS TABLE transactions;
    CREATE TABLE undamaged_accounts AS TABLE accounts;
    CREATE TABLE undamaged_prices AS TABLE prices;
    CREATE TABLE undamaged_attempts AS TABLE payment_attempts;
    CREATE TABLE undamaged_customers AS TABLE stripe_customers;
"""
RESTORE = """
    DELETE FROM transactions;
    INSERT INTO transactions OVERRIDING SYSTEM VALUE TABLE undamaged_transactions;
    DELETE FROM accounts;
    INSERT INTO accounts TABLE undamaged_accounts;
    DELETE FROM prices;
    INSERT INTO prices OVERRIDING SYSTEM VALUE TABLE undamaged_prices;
    DELETE FROM payment_attempts;
    INSERT INTO payment_attempts TABLE undamaged_attempts;
    DELETE FROM stripe_customers;
    INSERT INTO stripe_customers TABLE undamaged_customers;
    DELETE FROM set_aside_events;
"""

DAMAGES = [
    Damage(
        "a debit's amount",
        "UPDATE transactions SET amount_cents = -15 WHERE org_id = 1 AND call_id = 101",
        {"balance_is_sum", "chain_unbroken", "debit_priced_again"},
    ),
    Damage(
        "a debit's amount by one cent",
        "UPDATE transactions SET amount_cents = amount_cents - 1 WHERE org_id = 1 AND call_id = 102",
        {"debit_priced_again"},
        rebalanced=True,
    ),
    Damage(
        "an adjustment's amount",
        "UPDATE transactions SET amount_cents = 20000 WHERE org_id = 1 AND kind = 'adjustment'",
        {"balance_is_sum", "chain_unbroken"},
    ),
    Damage(
        "two amounts that cancel out",
        "UPDATE transactions SET amount_cents = -24 WHERE org_id = 1 AND call_id = 101;"
        "UPDATE transactions SET amount_cents = -16 WHERE org_id = 1 AND call_id = 105",
        {"chain_unbroken", "debit_priced_again"},
    ),
    Damage(
        "a row missing in the middle",
        "DELETE FROM transactions WHERE org_id = 1 AND call_id = 103",
        {"transactions_counted", "balance_is_sum", "chain_unbroken"},
    ),
    Damage(
        "the first row missing",
        "DELETE FROM transactions WHERE org_id = 1 AND kind = 'adjustment'",
        {"transactions_counted", "balance_is_sum", "chain_unbroken"},
    ),
    Damage(
        "the last row missing",
        "DELETE FROM transactions WHERE org_id = 1 AND call_id = 105",
        {"transactions_counted", "balance_is_sum", "balance_is_last", "last_posted_at_is_newest"},
    ),
    Damage(
        "the only row missing",
        "DELETE FROM transactions WHERE org_id = 4",
        {"transactions_counted", "balance_is_sum", "last_posted_at_is_newest"},
        org_id=4,
    ),
    Damage(
        "an org's rows all missing, the balance set to 0",
        "DELETE FROM transactions WHERE org_id = 1; UPDATE accounts SET balance_cents = 0 WHERE org_id = 1",
        {"transactions_counted", "last_posted_at_is_newest"},
    ),
    Damage(
        "a transaction too many in the account's count",
        "UPDATE accounts SET transaction_count = transaction_count + 1 WHERE org_id = 1",
        {"transactions_counted"},
    ),
    Damage(
        "a balance",
        "UPDATE accounts SET balance_cents = balance_cents + 1 WHERE org_id = 1",
        {"balance_is_sum", "balance_is_last"},
    ),
    Damage(
        "a balance without transactions",
        "UPDATE accounts SET balance_cents = 1 WHERE org_id = 3",
        {"balance_is_sum"},
        org_id=3,
    ),
    Damage(
        "the last balance_after and the balance",
        "UPDATE transactions SET balance_after_cents = 0 WHERE org_id = 1 AND call_id = 105;"
        "UPDATE accounts SET balance_cents = 0 WHERE org_id = 1",
        {"balance_is_sum", "chain_unbroken"},
    ),
    Damage(
        "a balance_after in the middle",
        "UPDATE transactions SET balance_after_cents = balance_after_cents + 1 WHERE org_id = 1 AND call_id = 103",
        {"chain_unbroken"},
    ),
    Damage(
        "a second debit of a call",
        COPY_OF_CALL_105.format(org_id=1, call_id=105),
        {"call_billed_once"},
        rebalanced=True,
    ),
    Damage(
        "a second writing of an adjustment",
        "INSERT INTO transactions (org_id, kind, amount_cents, balance_after_cents, created_at, description, source_key)"
        " SELECT org_id, kind, amount_cents, 0, (SELECT max(created_at) FROM transactions), description, source_key"
        " FROM transactions WHERE org_id = 1 AND kind = 'adjustment'",
        {"source_once"},
        rebalanced=True,
    ),
    Damage(
        "a debit of an org that isn't there",
        COPY_OF_CALL_105.format(org_id=404, call_id=1),
        {"account_exists"},
        org_id=404,
        rebalanced=True,
    ),
    Damage(
        "an account missing",
        "DELETE FROM accounts WHERE org_id = 1",
        {"account_exists"},
    ),
    Damage(
        "a duration",
        "UPDATE transactions SET duration_us = 120000001 WHERE org_id = 1 AND call_id = 101",
        {"debit_priced_again"},
    ),
    Damage(
        "a duration, made 0 s",
        "UPDATE transactions SET duration_us = 0 WHERE org_id = 1 AND call_id = 103",
        {"debit_priced_again"},
    ),
    Damage(
        "a debit for a call of 0 s",
        "UPDATE transactions SET duration_us = 0, billable_seconds = 0, amount_cents = 0,"
        " description = 'Call billing: 0 minutes × $0.08' WHERE org_id = 1 AND call_id = 101",
        {"debit_priced_again"},
        rebalanced=True,
    ),
    Damage(
        "billable seconds",
        "UPDATE transactions SET billable_seconds = 180 WHERE org_id = 1 AND call_id = 101",
        {"debit_priced_again", "description_matches"},
    ),
    Damage(
        "a rate",
        "UPDATE transactions SET rate_microusd_per_minute = 90000 WHERE org_id = 1 AND call_id = 101",
        {"debit_priced_again", "description_matches", "price_in_force"},
    ),
    Damage(
        "a rate that makes the same cents",
        "UPDATE transactions SET rate_microusd_per_minute = 80001, description = 'Call billing: 2 minutes × $0.080001'"
        " WHERE org_id = 1 AND call_id = 101",
        {"price_in_force"},
    ),
    Damage(
        "a rate with all that follows from it",
        "UPDATE transactions SET rate_microusd_per_minute = 160000, amount_cents = -32,"
        " description = 'Call billing: 2 minutes × $0.16' WHERE org_id = 1 AND call_id = 101",
        {"price_in_force"},
        rebalanced=True,
    ),
    Damage(
        "a rate with all that follows from it, and the end put ahead of the clock",
        "UPDATE transactions SET rate_microusd_per_minute = 160000, amount_cents = -32,"
        " description = 'Call billing: 2 minutes × $0.16', ended_at = ended_at + interval '1 year'"
        " WHERE org_id = 1 AND call_id = 101",
        {"price_in_force"},
        rebalanced=True,
    ),
    Damage(
        "a minimum",
        "UPDATE transactions SET minimum_s = 49 WHERE org_id = 1 AND call_id = 104",
        {"debit_priced_again", "price_in_force"},
    ),
    Damage(
        "a connect fee",
        "UPDATE transactions SET connect_fee_microusd = 0 WHERE org_id = 1 AND call_id = 104",
        {"debit_priced_again", "price_in_force"},
    ),
    Damage(
        "a first increment",
        "UPDATE transactions SET increment_first_s = 50 WHERE org_id = 1 AND call_id = 104",
        {"debit_priced_again", "price_in_force"},
    ),
    Damage(
        "a next increment",
        "UPDATE transactions SET increment_next_s = 7 WHERE org_id = 1 AND call_id = 102",
        {"debit_priced_again", "price_in_force"},
    ),
    Damage(
        "a tier's price, after calls were billed with it",
        "DELETE FROM transactions WHERE org_id = 2 AND tier = 'bolt';"
        "UPDATE prices SET connect_fee_microusd = 1 WHERE tier = 'bolt'",
        {"price_in_force"},
        rebalanced=True,
    ),
    Damage(
        "an org's own price, behind its calls",
        "INSERT INTO prices (tier, org_id, in_force_from, rate_microusd_per_minute, increment_first_s, increment_next_s,"
        " minimum_s, connect_fee_microusd, created_at)"
        " VALUES ('bolt', 1, '2026-01-01', 80000, 60, 60, 0, 1, now()), ('fine', 1, '2026-01-01', 1, 60, 60, 0, 0, now()),"
        " ('fine', 1, '2026-01-02', NULL, NULL, NULL, NULL, NULL, now()), ('bolt', 99, '2026-01-01', 1, 60, 60, 0, 0, now())",
        {"price_in_force"},
    ),
    Damage(
        "a tier",
        "UPDATE transactions SET tier = 'gone' WHERE org_id = 1 AND call_id = 101",
        {"price_in_force"},
    ),
    Damage(
        "a description",
        "UPDATE transactions SET description = 'Call billing: 2 minutes × $0.080' WHERE org_id = 1 AND call_id = 101",
        {"description_matches"},
    ),
    Damage(
        "swapped times",
        "UPDATE transactions SET created_at = other.created_at FROM transactions AS other"
        " WHERE transactions.org_id = 1 AND other.org_id = 1"
        " AND (transactions.call_id, other.call_id) IN ((102, 103), (103, 102))",
        {"order_of_time"},
    ),
    Damage(
        "the time of the last posting",
        "UPDATE accounts SET last_posted_at = last_posted_at + interval '1 s' WHERE org_id = 1",
        {"last_posted_at_is_newest"},
    ),
    Damage(
        "a time finer than milliseconds",
        "UPDATE transactions SET created_at = created_at + interval '1 microsecond' WHERE org_id = 1 AND call_id = 104",
        {"whole_milliseconds"},
    ),
    Damage(
        "a debit that gives money",
        "UPDATE transactions SET amount_cents = 16 WHERE org_id = 1 AND call_id = 101",
        {"sign_of_kind", "debit_priced_again"},
        rebalanced=True,
    ),
    Damage(
        "an adjustment made a refund that gives money",
        "UPDATE transactions SET kind = 'refund' WHERE org_id = 1 AND kind = 'adjustment'",
        {"sign_of_kind", "refund_has_credit"},
    ),
    Damage(
        "a debit made a credit that takes money",
        "UPDATE transactions SET kind = 'credit', call_id = NULL, source_key = 'pi_1'"
        " WHERE org_id = 1 AND call_id = 101",
        {"sign_of_kind", "credit_has_attempt", "payment_in_customers_org"},
        rebalanced=True,
    ),
    Damage(
        "an adjustment of 0 cents",
        "UPDATE transactions SET amount_cents = 0 WHERE org_id = 1 AND kind = 'adjustment'",
        {"sign_of_kind"},
        rebalanced=True,
    ),
    Damage(
        "a kind that there isn't",
        "UPDATE transactions SET kind = 'gift' WHERE org_id = 1 AND kind = 'adjustment'",
        {"sign_of_kind"},
    ),
    Damage(
        "a debit without its call",
        "UPDATE transactions SET call_id = NULL WHERE org_id = 1 AND call_id = 101",
        {"sign_of_kind"},
    ),
    Damage(
        "an adjustment without its key",
        "UPDATE transactions SET source_key = NULL WHERE org_id = 1 AND kind = 'adjustment'",
        {"sign_of_kind"},
    ),
    Damage(
        "a credit that is missing",
        "DELETE FROM transactions WHERE org_id = 5 AND source_key = 'pi_3'",
        {"attempt_credited"},
        org_id=5,
        rebalanced=True,
    ),
    Damage(
        "a credit of another amount than was charged",
        "UPDATE transactions SET amount_cents = 2400 WHERE org_id = 5 AND source_key = 'pi_3'",
        {"attempt_credited"},
        org_id=5,
        rebalanced=True,
    ),
    Damage(
        "a credit for an attempt that failed",
        "UPDATE payment_attempts SET status = 'failed' WHERE org_id = 5 AND payment_intent_id = 'pi_3'",
        {"attempt_credited", "credit_has_attempt"},
        org_id=5,
    ),
    Damage(
        "a credit that nobody was charged for",
        "INSERT INTO stripe_customers (customer_id, org_id) VALUES ('cus_4', 4); "
        "UPDATE payment_attempts SET org_id = 4, customer_id = 'cus_4' WHERE payment_intent_id = 'pi_1'; "
        "UPDATE payment_attempts SET status = 'failed' WHERE payment_intent_id = 'pi_1'",
        {"credit_has_attempt", "payment_in_customers_org"},
        org_id=5,
    ),
    Damage(
        "two attempts for one charge",
        "UPDATE payment_attempts SET payment_intent_id = 'pi_2' WHERE org_id = 5 AND status = 'failed'",
        {"attempt_credited"},
        org_id=5,
    ),
    Damage(
        "a payment credited to another org than its customer's",
        "INSERT INTO stripe_customers (customer_id, org_id) VALUES ('cus_2', 4); "
        "UPDATE payment_attempts SET customer_id = 'cus_2' WHERE payment_intent_id = 'pi_3'",
        {"payment_in_customers_org", "customer_in_org"},
        org_id=5,
    ),
    Damage(
        "an account with another org's customer",
        "UPDATE accounts SET stripe_customer_id = 'cus_1' WHERE org_id = 1",
        {"customer_in_org"},
    ),
    Damage(
        "an attempt with a customer that is nobody's",
        "UPDATE payment_attempts SET customer_id = 'cus_9' WHERE org_id = 5 AND status = 'failed'",
        {"customer_in_org"},
        org_id=5,
    ),
    Damage(
        "a payment credited to two orgs",
        "INSERT INTO transactions (org_id, kind, amount_cents, balance_after_cents, created_at, description, source_key)"
        " SELECT 4, 'credit', 2500, 2500, max(created_at), 'Top-up', 'pi_3' FROM transactions; "
        "INSERT INTO payment_attempts (org_id, id, kind, amount_cents, customer_id, payment_method_id, created_at, status,"
        " payment_intent_id, look_at, finished_at, recovered) SELECT 4, id, kind, amount_cents, customer_id,"
        " payment_method_id, created_at, status, payment_intent_id, look_at, finished_at, true"
        " FROM payment_attempts WHERE payment_intent_id = 'pi_3'",
        {"payment_in_customers_org"},
        org_id=4,
        rebalanced=True,
    ),
    Damage(
        "a refund of what was never paid",
        "UPDATE transactions SET metadata = NULL WHERE org_id = 5 AND kind = 'refund'",
        {"refund_has_credit"},
        org_id=5,
    ),
    Damage(
        "two reloads open at once",
        "UPDATE payment_attempts SET status = 'open', finished_at = NULL, look_at = '2099-01-01'"
        " WHERE org_id = 5 AND status = 'failed'",
        {"one_open_reload", "month_within_limit", "attempt_ends"},
        org_id=5,
    ),
    Damage(
        "a reload one cent above its limit",
        "UPDATE payment_attempts SET monthly_limit_cents = 4999 WHERE org_id = 5 AND payment_intent_id = 'pi_3'",
        {"month_within_limit"},
        org_id=5,
    ),
    Damage(
        "a reload beside one that had failed only later",
        "UPDATE payment_attempts SET finished_at = '2026-04-05 00:00:00.001' WHERE org_id = 5 AND status = 'failed'",
        {"month_within_limit"},
        org_id=5,
    ),
    Damage(
        "a posting of a time to come",
        "UPDATE transactions SET created_at = metering_now() + interval '31 s'"
        " WHERE id = (SELECT max(id) FROM transactions WHERE org_id = 1);"
        " UPDATE accounts SET last_posted_at = (SELECT max(created_at) FROM transactions WHERE org_id = 1) WHERE org_id = 1",
        {"posted_by_now"},
    ),
    Damage(
        "an attempt without an end",
        "UPDATE payment_attempts SET created_at = metering_now() - interval '27 h 1 s', last_sent_at = NULL,"
        " look_at = '2099-01-01' WHERE org_id = 5 AND status = 'open'",
        {"attempt_ends"},
        org_id=5,
    ),
    Damage(
        "an attempt that nobody looks at",
        "UPDATE payment_attempts SET look_at = '2026-04-01' WHERE org_id = 5 AND status = 'open'",
        {"attempt_watched"},
        org_id=5,
    ),
    Damage(
        "an event of Stripe's that can't be handled",
        "INSERT INTO set_aside_events (id, type, created_at, livemode, data, set_aside_at, retry_at, error)"
        " VALUES ('evt_1', 'refund.created', '2026-04-01', false, '{}', '2026-04-01', '2026-04-01', 'KeyError')",
        {"stripe_event_handled"},
        org_id=None,
    ),
]
