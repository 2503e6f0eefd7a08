"""Where in an org's list its transactions stand."""

from sqlalchemy import Index, PrimaryKeyConstraint
from sqlalchemy.orm import Mapped

from db.models.base import Base


class TransactionMark(Base):
    """Every so many transactions: the org's `position`-th, counted from its first, is `transaction_id`.

    True for ever once it is true: transactions are only added, under the org's lock, each with a higher id than all before. So a
    page at any depth is found from the mark before it, and what lies between two dates is counted by subtraction. Written by
    whoever needs one that isn't there (db/ledger/transaction_marks.py).
    """

    __tablename__ = "transaction_marks"
    __table_args__ = (
        PrimaryKeyConstraint("org_id", "position"),
        Index("transaction_marks_transaction_id_key", "org_id", "transaction_id", unique=True),
    )

    org_id: Mapped[int]
    position: Mapped[int]
    transaction_id: Mapped[int]
