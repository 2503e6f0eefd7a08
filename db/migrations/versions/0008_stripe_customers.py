"""Whose each customer at Stripe is, in one table of the installation; and a payment's credit is one over all orgs."""

import json

from alembic import op
from sqlalchemy import text

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

# The version before could credit a payment to a second org, if its metadata were edited at Stripe. The ledger stays as it is, so
# what is there is left out of the key by its id; the audit names it until it is taken back.
SECOND_CREDITS = """
SELECT id FROM (
    SELECT id, row_number() OVER (PARTITION BY source_key ORDER BY id) AS number FROM transactions WHERE kind = 'credit'
) AS credit
WHERE number > 1 ORDER BY id
"""
# Every credit has a source key. Said here, it keeps the index from a query for an org's credits, which names none: that query
# has an index by org.
CREDIT_KEY = (
    "CREATE UNIQUE INDEX transactions_credit_key ON transactions (source_key)"
    " WHERE kind = 'credit' AND source_key IS NOT NULL"
)

TABLE = """
CREATE TABLE stripe_customers (
    customer_id text NOT NULL,
    org_id bigint NOT NULL,
    CONSTRAINT stripe_customers_pkey PRIMARY KEY (customer_id)
);
CREATE TRIGGER stripe_customers_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON stripe_customers
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
"""

# The version before notes a customer in the account alone, and would take one over from edited metadata: it runs beside this one
# for a while. Not fired by a call's debit, which sets other columns.
KEEP_CUSTOMER = """
CREATE FUNCTION keep_stripe_customer() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    owner bigint;
BEGIN
    INSERT INTO stripe_customers (customer_id, org_id) VALUES (NEW.stripe_customer_id, NEW.org_id)
        ON CONFLICT (customer_id) DO NOTHING;
    SELECT org_id INTO owner FROM stripe_customers WHERE customer_id = NEW.stripe_customer_id;
    IF owner IS DISTINCT FROM NEW.org_id THEN
        RAISE EXCEPTION 'customer % is org %''s, and can''t become org %''s', NEW.stripe_customer_id, owner, NEW.org_id
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER accounts_keep_stripe_customer AFTER UPDATE OF stripe_customer_id ON accounts
    FOR EACH ROW WHEN (NEW.stripe_customer_id IS NOT NULL) EXECUTE FUNCTION keep_stripe_customer();
"""

# Where two orgs have the same customer, by edited metadata, he is that one's which made the first attempt with him itself.
KNOWN = """
INSERT INTO stripe_customers (customer_id, org_id)
SELECT DISTINCT ON (customer_id) customer_id, org_id FROM (
    SELECT customer_id, org_id, recovered::integer AS doubt, created_at FROM payment_attempts WHERE customer_id <> ''
    UNION ALL
    SELECT stripe_customer_id, org_id, 2, created_at FROM accounts WHERE stripe_customer_id IS NOT NULL
) AS used
ORDER BY customer_id, doubt, created_at, org_id;
UPDATE accounts SET stripe_customer_id = NULL, default_payment_method_id = NULL, default_card_identity = NULL
FROM stripe_customers WHERE customer_id = stripe_customer_id AND stripe_customers.org_id <> accounts.org_id;
"""

GRANTS = "GRANT SELECT, INSERT ON stripe_customers TO metering_app, metering_api, metering_jobs;"


def upgrade() -> None:
    """Make table and key, and note whose the customers are that there are.

    Transactions are locked before accounts, as a meter does: it writes its rows, then the accounts.
    """
    op.execute("LOCK TABLE transactions IN SHARE MODE")
    second = op.get_bind().execute(text(SECOND_CREDITS)).scalars().all()
    # As text: ids are numbers, so nothing of them has to be quoted.
    left_out = f" AND id NOT IN ({json.dumps(list(second))[1:-1]})" if second else ""
    op.execute(CREDIT_KEY + left_out)
    op.execute(TABLE)
    op.execute(KEEP_CUSTOMER)
    op.execute(KNOWN)
    op.execute(GRANTS)
