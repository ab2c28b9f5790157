"""Items as SQLAlchemy maps them, and as they are answered."""

from pydantic import BaseModel, ConfigDict
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    price: Mapped[int]
    count: Mapped[int]


class PublicItem(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    name: str
    price: int
    count: int


def page(offset, limit):
    """Items in order of their ids."""
    return select(Item).order_by(Item.id).offset(offset).limit(limit)
