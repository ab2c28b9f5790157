"""Calls that run several statements of SQLite, after which their threads run no
other. Only the standard library of Python 3.8 is needed.

Runs them when it is told to by a line. `APP_SQLITE` names another module that is
like `sqlite3`.
"""

import importlib
import os
import sys
import threading

sqlite3 = importlib.import_module(os.environ.get("APP_SQLITE", "sqlite3"))

INSERT = "insert into items values (?)"
# Nobody reads what little is written.
_, NOWHERE = os.pipe()


def rows():
    """Rows that come with system calls, as the end of a thread's work does."""
    for number in range(3):
        os.write(NOWHERE, b"row")
        yield (number,)


def many(database):
    database.cursor().executemany(INSERT, rows())
    os.write(NOWHERE, b"done")


def script(database):
    database.create_function("note", 0, lambda: os.write(NOWHERE, b"row"))
    database.executescript("select note(); delete from items where id < note()")
    os.write(NOWHERE, b"done")


def many_in_one_expression(database):
    return os.write(NOWHERE, b"done" if database.executemany(INSERT, rows()) else b"")


def again_and_again(database):
    """From one place. The last call runs nothing."""
    list(map(database.executemany, [INSERT] * 3, ([(7,), (8,)], [(9,)], [])))
    os.write(NOWHERE, b"done")


def main():
    print(sqlite3.sqlite_version, flush=True)
    sys.stdin.readline()
    database = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    database.execute("create table items (id integer)")
    for work in (many, script, many_in_one_expression, again_and_again):
        thread = threading.Thread(target=work, args=(database,))
        thread.start()
        thread.join()
    many(database)
    print("done", flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main()
