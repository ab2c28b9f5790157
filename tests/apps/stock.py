"""The SQLite database behind the demo's inventory and the benchmark's services.

The file is named by `APP_DATABASE`; it is filled by whoever comes first.
Connections belong to one thread each, as SQLite wants it.
"""

import os
import sqlite3
import threading

ITEMS = ["lamp", "chair", "table", "shelf", "carpet", "mirror", "clock", "vase"]
LOCAL = threading.local()


def connection():
    """This thread's connection."""
    if not hasattr(LOCAL, "connection"):
        LOCAL.connection = sqlite3.connect(
            os.environ["APP_DATABASE"], timeout=30, isolation_level=None
        )
    return LOCAL.connection


def fill():
    """Creates the table and its rows where they are missing."""
    database = connection()
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("BEGIN IMMEDIATE")
    database.execute(
        "CREATE TABLE IF NOT EXISTS item (id INTEGER PRIMARY KEY, name TEXT, price INTEGER, count INTEGER)"
    )
    if database.execute("SELECT count(*) FROM item").fetchone()[0] == 0:
        database.executemany(
            "INSERT INTO item (name, price, count) VALUES (?, ?, ?)",
            [(f"{name} {number}", 100 + number, 50) for number in range(25) for name in ITEMS],
        )
    database.execute("COMMIT")


def find(item_id):
    """One item, or None."""
    row = connection().execute("SELECT id, name, price, count FROM item WHERE id = ?", (item_id,))
    return as_dict(row.fetchone())


def page(offset, limit):
    """Items in order of their ids."""
    rows = connection().execute(
        "SELECT id, name, price, count FROM item ORDER BY id LIMIT ? OFFSET ?", (limit, offset)
    )
    return [as_dict(row) for row in rows]


def take(item_id):
    """Takes one piece out of stock; false when there is none."""
    return (
        connection()
        .execute("UPDATE item SET count = count - 1 WHERE id = ? AND count > 0", (item_id,))
        .rowcount
        == 1
    )


def refill(item_id):
    """Puts fifty pieces into stock."""
    connection().execute("UPDATE item SET count = 50 WHERE id = ?", (item_id,))


def as_dict(row):
    return row and dict(zip(("id", "name", "price", "count"), row))
