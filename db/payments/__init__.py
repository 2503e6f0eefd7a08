"""How a payment's outcome reaches the ledger: settlement, an attempt's next step, Stripe's events, idempotency keys."""
