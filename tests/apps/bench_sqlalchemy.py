"""The benchmark's FastAPI service as its tutorial has it: a session of
SQLAlchemy's from a dependency, endpoints in the thread pool, answers checked
against a model; items in SQLite.

`uvicorn --workers 1 bench_sqlalchemy:app` with `APP_DATABASE`.
"""

import os
from typing import Annotated

from fastapi import Depends, FastAPI
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

import stock
from sqlalchemy_items import PublicItem, page

stock.fill()
engine = create_engine("sqlite:///" + os.environ["APP_DATABASE"])
app = FastAPI()


def session():
    with Session(engine) as session:
        yield session


@app.get("/items", response_model=list[PublicItem])
def items(session: Annotated[Session, Depends(session)], offset: int = 0, limit: int = 20):
    return session.scalars(page(offset, limit)).all()
