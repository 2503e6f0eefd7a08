"""How Stripe signs its webhooks."""

import hashlib
import hmac
from collections.abc import Iterable


def signature_header(body: bytes, secrets: Iterable[str], at: int) -> str:
    """The header `Stripe-Signature`: the time in seconds, and a signature by each secret (two, while one is being rotated)."""
    signed = str(at).encode() + b"." + body
    signatures = [hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest() for secret in secrets]
    return ",".join([f"t={at}", *(f"v1={signature}" for signature in signatures)])
