"""The benchmark's FastAPI service with PostgreSQL: one query by primary key per
request, over a pool of asyncpg's.

`uvicorn --workers 1 bench_postgres:app` with `APP_POSTGRES`.
"""

import os
from contextlib import asynccontextmanager

import asyncpg
from fastapi import FastAPI, HTTPException

HOST, PORT = os.environ["APP_POSTGRES"].rsplit(":", 1)
FILL = """
    create table if not exists item (id int primary key, name text, price int, count int);
    insert into item select id, 'item ' || id, 100 + id, 50 from generate_series(1, 200) id
        on conflict do nothing;
"""
pools = {}


@asynccontextmanager
async def lifespan(app):
    pools["items"] = await asyncpg.create_pool(
        host=HOST, port=int(PORT), user="me", database="postgres", ssl=False, min_size=4, max_size=16
    )
    await pools["items"].execute(FILL)
    yield
    await pools["items"].close()


app = FastAPI(lifespan=lifespan)


@app.get("/items/{item_id}")
async def item(item_id: int):
    row = await pools["items"].fetchrow("select id, name, price, count from item where id = $1", item_id)
    if row is None:
        raise HTTPException(status_code=404)
    return dict(row)
