"""Settings of a role that needs to name a Stripe, in tests where nothing is asked of it."""

from typing import Final

NO_STRIPE: Final = {
    "STRIPE_API_KEY": "sk_test_of_nobody",
    "STRIPE_WEBHOOK_SECRET": "whsec_of_nobody",
    "STRIPE_API_BASE": "http://127.0.0.1:1",  # where nobody listens
}
