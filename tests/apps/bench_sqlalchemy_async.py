"""The same service as `bench_sqlalchemy`, asynchronous: SQLAlchemy over asyncpg,
items in PostgreSQL.

`uvicorn --workers 1 bench_sqlalchemy_async:app` with `APP_POSTGRES`.
"""

import os
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from sqlalchemy_items import PublicItem, page

FILL = [
    "create table if not exists item (id int primary key, name text, price int, count int)",
    "insert into item select id, 'item ' || id, 100 + id, 50 from generate_series(1, 200) id"
    " on conflict do nothing",
]
engine = create_async_engine(
    f"postgresql+asyncpg://me@{os.environ['APP_POSTGRES']}/postgres?ssl=disable", pool_size=16
)


@asynccontextmanager
async def lifespan(app):
    async with engine.begin() as connection:
        for statement in FILL:
            await connection.execute(text(statement))
    yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


async def session():
    async with AsyncSession(engine) as session:
        yield session


@app.get("/items", response_model=list[PublicItem])
async def items(session: Annotated[AsyncSession, Depends(session)], offset: int = 0, limit: int = 20):
    return (await session.scalars(page(offset, limit))).all()
