"""What tells one card from another, whatever payment method it is saved as."""


def card_identity(fingerprint: str, exp_month: int, exp_year: int) -> str:
    """A card's identity: its number, as Stripe's fingerprint, and its expiry, which changes where it is issued anew."""
    return f"{fingerprint} {exp_month}/{exp_year}"


def same_number(one: str, other: str) -> bool:
    """Whether two cards have the same number: identities, or ids of payment methods where Stripe told no fingerprint."""
    return one.partition(" ")[0] == other.partition(" ")[0]
