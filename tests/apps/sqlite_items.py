"""The table that the services with SQLite query."""

import os
import sqlite3

FILE = os.environ["APP_DATABASE"]


def fill():
    with sqlite3.connect(FILE, timeout=30) as database:
        database.execute("create table items (id integer primary key, name text unique)")
        database.executemany("insert into items values (?, ?)", [(1, "lamp"), (2, "chair"), (3, "table")])
    database.close()
