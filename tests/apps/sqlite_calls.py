"""Calls that run several statements of SQLite, what might be taken for such, and
statements that fail. Only the standard library of Python 3.8 is needed.

Runs them when it is told to by a line. `APP_SQLITE` names another module that is
like `sqlite3`.
"""

import importlib
import os
import sys
import tempfile

sqlite3 = importlib.import_module(os.environ.get("APP_SQLITE", "sqlite3"))

INSERT = "insert into items values (?, ?)"


def call(method, *arguments):
    """Calls whatever it is in the same place."""
    try:
        method(*arguments)
    except sqlite3.Error:
        pass


def many(database):
    rows = [(None, "secret")] * 1000
    cursor = database.cursor()
    cursor.executemany(INSERT, rows)
    [cursor.execute(INSERT, row) for row in rows[:2]]
    # The one and the other through the same instruction.
    for method, parameters in [
        (cursor.executemany, rows[:3]),
        (cursor.execute, rows[0]),
        (cursor.executemany, rows[:2]),
        (cursor.executemany, rows[:4]),
        (cursor.execute, rows[0]),
    ]:
        call(method, INSERT, parameters)
    database.executemany(INSERT, rows[:1])
    # Rows that other statements give.
    others = (database.execute("select null, 'secret'").fetchone() for _ in range(3))
    database.executemany("insert into items values (?, ?)", others)
    repeated = [(5000,), (5001,), (5000,), (5002,)]
    call(cursor.executemany, "insert into items values (?, 'lamp')", repeated)


def scripts(database):
    script = "delete from items; insert into items values (1, 'secret');\n select * from items"
    call(database.executescript, script)
    call(database.execute, "delete from items")
    call(database.executescript, "select 1; select 2")
    call(database.executescript, "select 3")
    call(database.executescript, "delete from items; insert into items values (1, 'a'), (1, 'b'); select 4")


def failures(database):
    call(database.execute, "select nothing from items where name = 'secret'")
    call(database.execute, "selec 'secret'")
    call(database.executescript, "select 5; select nothing from items; select 6")
    call(database.execute, "select 7")


def cursors(database):
    database.execute("create table items (id integer primary key)")
    database.execute("insert into items values (1), (2), (3)")
    database.execute("attach ':memory:' as other")
    database.execute("create table other.notes (id integer)")
    left_open = database.execute("select id from items")
    left_open.fetchone()
    database.execute("select id from items order by id").fetchmany(2)
    for _ in range(2):
        database.execute("select id from items where id > ?", (1,)).fetchall()
    left_open.close()


def main():
    print(sqlite3.sqlite_version, flush=True)
    sys.stdin.readline()
    database = sqlite3.connect(":memory:", isolation_level=None)
    database.execute("create table items (id integer primary key, name text)")
    many(database)
    scripts(database)
    failures(database)
    database.close()
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(os.path.realpath(folder), "shop.db")
        database = sqlite3.connect(f"file:{file}?mode=rwc", uri=True, isolation_level=None)
        cursors(database)
        database.close()
    print(file, flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main()
