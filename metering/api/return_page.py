"""Where a customer comes back to from the bank, unless the settings name a page of the operator's own: with test keys only.

It asks nobody what came of the payment: what Stripe adds to the address could be anybody's. Whoever began the top-up learns it.
"""

from typing import Final

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

PATH: Final = "/payment-return"
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'",
    # The address holds the payment's client secret.
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
PAGE: Final = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Back from your bank</title>
<style>body { font: 18px/1.5 system-ui, sans-serif; margin: 4rem auto; max-width: 32rem; padding: 0 1rem; }</style>
</head><body>
<h1>You are back from your bank</h1>
<p>You may close this window, and go on where you started the payment.
Your balance shows it as soon as your bank has confirmed.</p>
</body></html>
"""


def serve_return_page(app: FastAPI) -> None:
    """Let `app` serve the page."""

    async def payment_return() -> HTMLResponse:
        return HTMLResponse(PAGE, headers=HEADERS)

    app.add_api_route(PATH, payment_return, include_in_schema=False, name="payment_return")
