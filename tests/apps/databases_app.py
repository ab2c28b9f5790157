"""Requests that query PostgreSQL and Redis from an event loop (ASGI: `uvicorn
databases_app:app`).

Each request makes `n` queries, each of which carries the request's id and a
number of its own where spans show them: as the name of a column, or of a
script that there is not.
"""

import asyncio
import os
import signal
import ssl
from contextlib import asynccontextmanager, suppress

import asyncpg
import psycopg
import psycopg2
import psycopg_pool
import redis.asyncio
from fastapi import FastAPI
from redis.exceptions import ResponseError
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

HOST, PORT = os.environ["APP_POSTGRES"].rsplit(":", 1)
REDIS_HOST, REDIS_PORT = os.environ["APP_REDIS"].rsplit(":", 1)
POOL = 16
pools = {}


@asynccontextmanager
async def lifespan(app):
    where = dict(host=HOST, port=int(PORT), user="me", database="shop")
    pools["asyncpg"] = await asyncpg.create_pool(**where, ssl=False, min_size=4, max_size=POOL)
    conninfo = f"host={HOST} port={PORT} user=me dbname=shop"
    pools["psycopg"] = psycopg_pool.AsyncConnectionPool(conninfo, min_size=4, max_size=POOL, open=False, timeout=60)
    await pools["psycopg"].open(wait=True)
    pools["sqlalchemy"] = create_async_engine(
        f"postgresql+asyncpg://me@{HOST}:{PORT}/shop", pool_size=POOL, max_overflow=0, pool_timeout=60
    )
    pools["redis"] = redis.asyncio.Redis(host=REDIS_HOST, port=int(REDIS_PORT), decode_responses=True)
    yield
    await pools["redis"].aclose()
    await pools["sqlalchemy"].dispose()
    await pools["psycopg"].close()
    await pools["asyncpg"].close()


app = FastAPI(lifespan=lifespan)


def columns(id, n):
    return [f'"{id}_{call}"' for call in range(n)]


@app.get("/")
async def root():
    return {}


@app.get("/asyncpg")
async def over_asyncpg(id: str, n: int = 1):
    for column in columns(id, n):
        async with pools["asyncpg"].acquire() as connection:
            await connection.fetch(f"select $1::text as {column}", "secret")
    return {}


@app.get("/psycopg")
async def over_psycopg(id: str, n: int = 1):
    for column in columns(id, n):
        async with pools["psycopg"].connection() as connection:
            await (await connection.execute(f"select %s as {column}", ("secret",))).fetchall()
    return {}


@app.get("/pipeline")
async def over_psycopg_pipeline(id: str, n: int = 1):
    async with pools["psycopg"].connection() as connection, connection.pipeline():
        cursors = [await connection.execute(f"select %s as {column}", ("secret",)) for column in columns(id, n)]
        for cursor in cursors:
            await cursor.fetchall()
    return {}


@app.get("/sqlalchemy")
async def over_sqlalchemy(id: str, n: int = 1):
    async with pools["sqlalchemy"].connect() as connection:
        for column in columns(id, n):
            (await connection.execute(text(f"select :value as {column}"), {"value": "secret"})).all()
    return {}


@app.get("/redis")
async def over_redis(id: str, n: int = 1):
    for call in range(n):
        try:
            await pools["redis"].evalsha(f"{id}_{call}".replace("-", "_"), 1, "secret")
        except ResponseError as error:
            assert "NOSCRIPT" in str(error) or "No matching script" in str(error), error
    return {}


@app.get("/tls")
async def over_tls(id: str, n: int = 1):
    """Drivers that bring an OpenSSL of their own, and Python's."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    where = dict(host=HOST, port=int(PORT), user="me", database="shop")
    first, second, third = columns(id, 3)
    connection = await asyncpg.connect(**where, ssl=context)
    await connection.fetch(f"select $1::text as {first}", "secret")
    await connection.close()
    conninfo = f"host={HOST} port={PORT} user=me dbname=shop sslmode=require"
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
        await (await connection.execute(f"select %s as {second}", ("secret",))).fetchall()
    connection = psycopg2.connect(conninfo)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(f"select %s as {third}", ("secret",))
    connection.close()
    return {}


@app.get("/details")
async def details():
    """One of each, over connections of their own."""
    connection = await asyncpg.connect(host=HOST, port=int(PORT), user="me", database="shop", ssl=False)
    await connection.fetch("select * from items where id > $1", 0)
    await connection.fetch("select * from items, generate_series(1, $1)", 1000)
    await connection.fetch("select gen_random_uuid(), name from items, generate_series(1, $1)", 300)
    await connection.fetch("select name::bytea from items, generate_series(1, $1)", 2000)
    await connection.executemany("insert into items values ($1, $2)", [(n, "secret") for n in range(10, 13)])
    try:
        await connection.fetch("select * from nosuch")
    except asyncpg.UndefinedTableError:
        pass
    await connection.close()
    async with await psycopg.AsyncConnection.connect(f"host={HOST} port={PORT} user=me dbname=shop") as other:
        await (await other.execute("select name from items where id = %s", (1,))).fetchall()
    client = redis.asyncio.Redis(host=REDIS_HOST, port=int(REDIS_PORT), db=2)
    async with client.pipeline(transaction=False) as pipeline:
        await pipeline.set("a", "secret").get("a").execute()
    await client.aclose()
    return {}


@app.get("/arrays")
async def arrays():
    """Of which one driver asks for the types first, and the other sends them in binary form, too."""
    connection = await asyncpg.connect(host=HOST, port=int(PORT), user="me", database="shop", ssl=False)
    statement = "select gen_random_uuid(), array[name, null], array[1] from items a, generate_series(1, 600) limit 750"
    await connection.fetch(statement)
    await connection.close()
    async with await psycopg.AsyncConnection.connect(f"host={HOST} port={PORT} user=me dbname=shop") as other:
        await (await other.execute(statement + " -- again", binary=True)).fetchall()
    return {}


@app.get("/layers")
async def layers():
    """Through what lies above a driver, and several at once, over the pools."""
    async with pools["sqlalchemy"].connect() as connection:
        (await connection.execute(text("select name from items where id = :id"), {"id": 1})).all()
    async with pools["psycopg"].connection() as connection, connection.pipeline():
        cursors = [await connection.execute("select id from items where name = %s", (name,)) for name in ("a", "b")]
        for cursor in cursors:
            await cursor.fetchall()
    await pools["redis"].set("a", "secret")
    try:
        await pools["redis"].lpush("a", "secret")
    except ResponseError:
        pass
    return {}


@app.get("/dying")
async def dying():
    """The server dies when it has sent a part of the answer."""
    where = dict(host=HOST, port=int(PORT), user="me", database="shop", ssl=False)
    connection, other = await asyncpg.connect(**where), await asyncpg.connect(**where)
    statement = "select repeat('x', 9000), pg_sleep(60 * id) from generate_series(0, 1) as id"
    query = asyncio.ensure_future(connection.fetch(statement))
    waits = "select 1 from pg_stat_activity where pid = $1 and wait_event = 'PgSleep'"
    while not await other.fetchval(waits, connection.get_server_pid()):
        pass
    os.kill(connection.get_server_pid(), signal.SIGKILL)
    with suppress(OSError, asyncpg.PostgresError):
        await query
    return {}
