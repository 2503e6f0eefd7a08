"""The tables."""

from db.models.account import Account
from db.models.base import Base
from db.models.rejected_event import RejectedEvent
from db.models.tier import Tier, TierPrice
from db.models.transaction import Kind, Transaction

__all__ = ["Account", "Base", "Kind", "RejectedEvent", "Tier", "TierPrice", "Transaction"]
