"""The accounts' hot statements: those that the API asks with nearly every request.

None locks anything. Each says who asks it, and the index that it lives by.
"""

from typing import Final

# As many as BillingAccount has fields, in their order (billing.py).
_ACCOUNT_COLUMNS: Final = """
    accounts.org_id, accounts.balance_cents, accounts.auto_reload_enabled,
    coalesce(accounts.auto_reload_minimum_cents, 0) AS auto_reload_minimum_cents,
    coalesce(accounts.auto_reload_amount_cents, 0) AS auto_reload_amount_cents, accounts.auto_reload_monthly_limit_cents,
    accounts.auto_reload_minimum_cents IS NOT NULL AS minimum_set, accounts.auto_reload_amount_cents IS NOT NULL AS amount_set,
    accounts.stripe_customer_id, accounts.default_payment_method_id, accounts.default_card_identity, accounts.created_at,
    reload_states.pause_code, reload_states.paused_until
"""

_ACCOUNTS: Final = "accounts LEFT JOIN reload_states USING (org_id)"

_GOOD: Final = "revoked_at IS NULL AND (expires_at IS NULL OR expires_at > clock_timestamp())"

# Each request that comes alone, for the org of its key. By the unique key of key_sha256: at most one row, and how long it takes
# tells nothing of a key that is there.
ORG_OF_KEY: Final = f"SELECT org_id FROM api_keys WHERE key_sha256 = %s AND {_GOOD}"

# The same for all keys that wait for a look-up: one statement for all of them.
ORGS_OF_KEYS: Final = f"SELECT key_sha256, org_id FROM api_keys WHERE key_sha256 = ANY(%s) AND {_GOOD}"

# Once a minute for the keys that were used since, and that nobody has noted in the last hour: never while a request waits. Those
# that another process notes just then are left to it. By the unique key of key_sha256.
NOTE_KEY_USES: Final = """
    UPDATE api_keys SET last_used_at = clock_timestamp() WHERE id = ANY(ARRAY(
        SELECT id FROM api_keys
        WHERE key_sha256 = ANY(%s) AND coalesce(last_used_at < clock_timestamp() - interval '1 hour', true)
        FOR NO KEY UPDATE SKIP LOCKED
    ))
"""

# Requests about the account, and each settlement and change of settings, there under the org's lock. By the primary keys.
BILLING_OF_ORG: Final = f"SELECT {_ACCOUNT_COLUMNS} FROM {_ACCOUNTS} WHERE org_id = %s"

# GET /v1/billing as an event loop answers it: key and account in one. By that unique key, then by the primary keys.
BILLING_OF_KEY: Final = f"SELECT {_ACCOUNT_COLUMNS} FROM {_ACCOUNTS} WHERE org_id = ({ORG_OF_KEY})"
