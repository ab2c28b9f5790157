"""Requests that query SQLite (ASGI: `uvicorn sqlite_app:app`).

Each request of a load makes `n` queries, each of which carries the request's
id and a number of its own as the name of a column.
"""

import sqlite3
import threading

from fastapi import FastAPI

from sqlite_items import FILE, fill

LOCAL = threading.local()
app = FastAPI()
fill()


def connection():
    """This thread's connection."""
    if not hasattr(LOCAL, "connection"):
        LOCAL.connection = sqlite3.connect(FILE, timeout=30)
    return LOCAL.connection


def query(id, n):
    for call in range(n):
        found = connection().execute(f'select ? as "{id}_{call}" from items', ("secret",)).fetchall()
        assert len(found) == 3


@app.get("/")
async def root():
    return {}


@app.get("/loop")
async def in_the_loop(id: str, n: int = 1):
    query(id, n)
    return {}


@app.get("/pool")
def in_a_thread(id: str, n: int = 1):
    query(id, n)
    return {}


def many():
    """A call that runs several, and nothing after it."""
    memory = sqlite3.connect(":memory:", isolation_level=None)
    memory.execute("create table items (id integer)")
    memory.executemany("insert into items values (?)", [(1,), (2,)])
    return {}


@app.get("/many/loop")
async def many_in_the_loop():
    return many()


@app.get("/many/pool")
def many_in_a_thread():
    return many()


@app.get("/cursors")
def cursors(id: str, n: int = 1):
    """All of them open at a time: each was asked for its first row."""
    statements = [f'select ? as "{id}_{call}" from items' for call in range(n)]
    opened = [connection().execute(statement, ("secret",)) for statement in statements]
    for cursor in opened:
        assert len(cursor.fetchall()) == 3
    return {}


def details(database):
    """One of each, on a connection of its own."""
    database.execute("select name from items where id = ?", (1,)).fetchone()
    database.execute("select name from items where id > 0").fetchall()
    database.execute("insert into items values (9, 'secret')")
    try:
        database.execute("insert into items values (10, 'lamp')")
    except sqlite3.IntegrityError:
        pass
    database.rollback()
    database.execute("update items set name = name where id = ?", (1,))
    database.commit()
    left_open = database.execute("select id from items")
    left_open.fetchone()
    left_open.close()
    for number in range(6):
        database.execute("select count(*) from items where id = ?", (number,)).fetchone()


@app.get("/details")
async def tell():
    database = sqlite3.connect(FILE)
    details(database)
    database.close()
    memory = sqlite3.connect(":memory:")
    memory.execute("create table items (id integer primary key)")
    memory.close()
    return {}
