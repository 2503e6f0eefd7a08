"""The tables."""

from db.models.account import Account
from db.models.api_key import ApiKey
from db.models.audit import AuditedAccount, AuditFinding, AuditPass, AuditSuspect
from db.models.base import Base
from db.models.daily_usage import DailyUsage, DailyUsageCursor
from db.models.idempotency_key import IdempotencyKey
from db.models.monthly_usage import MonthlyUsage
from db.models.operator import Operator, OperatorLogEntry
from db.models.operator_refund import OperatorRefund
from db.models.org_name import OrgName
from db.models.owed_hold_end import OwedHoldEnd
from db.models.payment_attempt import PaymentAttempt
from db.models.payment_method import PaymentMethod
from db.models.pending_signal import PendingSignal
from db.models.refused_hold import RefusedHold
from db.models.rejected_event import RejectedEvent
from db.models.reload_resumption import ReloadResumption
from db.models.reload_state import ReloadState
from db.models.repricing import RepricedOrg, Repricing
from db.models.stripe_customer import StripeCustomer
from db.models.stripe_event import SetAsideEvent, StripeCursor, StripeEvent
from db.models.tier import PriceBookVersion, Tier, TierPrice
from db.models.transaction import Kind, Transaction
from db.models.transaction_mark import TransactionMark

__all__ = [
    "Account",
    "ApiKey",
    "AuditFinding",
    "AuditPass",
    "AuditSuspect",
    "AuditedAccount",
    "Base",
    "DailyUsage",
    "DailyUsageCursor",
    "IdempotencyKey",
    "Kind",
    "MonthlyUsage",
    "Operator",
    "OperatorLogEntry",
    "OperatorRefund",
    "OrgName",
    "OwedHoldEnd",
    "PaymentAttempt",
    "PaymentMethod",
    "PendingSignal",
    "PriceBookVersion",
    "RefusedHold",
    "RejectedEvent",
    "ReloadResumption",
    "ReloadState",
    "RepricedOrg",
    "Repricing",
    "SetAsideEvent",
    "StripeCursor",
    "StripeCustomer",
    "StripeEvent",
    "Tier",
    "TierPrice",
    "Transaction",
    "TransactionMark",
]
