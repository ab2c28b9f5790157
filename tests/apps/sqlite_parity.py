"""Requests that query SQLite in every way that an instrumentation sees (WSGI:
`gunicorn sqlite_parity:app`).
"""

import sqlite3

from flask import Flask
from sqlalchemy import create_engine, text

app = Flask(__name__)
INSERT = "insert into items values (?, ?)"


@app.get("/")
def root():
    return {}


@app.get("/sqlite3")
def over_sqlite3():
    database = sqlite3.connect(":memory:", isolation_level=None)
    cursor = database.cursor()
    cursor.execute("create table items (id integer primary key, name text)")
    cursor.executemany(INSERT, [(1, "lamp"), (2, "chair")])
    cursor.execute(INSERT, (3, "table"))
    cursor.execute("select name from items where id = ?", (1,)).fetchall()
    cursor.execute("select id from items where name = 'secret'").fetchall()
    for statement in ["insert into items (id) values (1)", "select nothing from items"]:
        try:
            cursor.execute(statement)
        except sqlite3.Error:
            pass
    cursor.executescript("delete from items; select count(*) from items")
    database.close()
    return {}


@app.get("/sqlalchemy")
def over_sqlalchemy():
    engine = create_engine("sqlite://")
    with engine.begin() as database:
        database.execute(text("create table items (id integer primary key, name text)"))
        rows = [{"id": 1, "name": "lamp"}, {"id": 2, "name": "chair"}]
        database.execute(text("insert into items values (:id, :name)"), rows)
        database.execute(text("select name from items where id = :id"), {"id": 1}).all()
    engine.dispose()
    return {}
