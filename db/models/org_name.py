"""What orgs are called, as it is searched."""

from sqlalchemy import ARRAY, Index, Text
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base


class OrgName(Base):
    """An org's name in lower case, with every three characters of it that follow each other. A trigger of accounts writes it."""

    __tablename__ = "org_names"
    __table_args__ = (Index("org_names_trigrams_idx", "trigrams", postgresql_using="gin"),)

    org_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    folded: Mapped[str]
    trigrams: Mapped[list[str]] = mapped_column(ARRAY(Text))
