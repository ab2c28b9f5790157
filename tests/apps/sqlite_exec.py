"""Statements that C code runs through `sqlite3_exec`, what fails for other reasons
than its text, and failures that nobody asks about. Only the standard library of
Python 3.8 is needed.

Runs them when it is told to by a line. `APP_SQLITE` names another module that is
like `sqlite3`, whose own copy of SQLite is then used.
"""

import ctypes
import importlib
import os
import sys

sqlite3 = importlib.import_module(os.environ.get("APP_SQLITE", "sqlite3"))


def library():
    """The copy of SQLite that this process has: a module's, or what that needs."""
    module = importlib.import_module("_sqlite3" if sqlite3.__name__ == "sqlite3" else f"{sqlite3.__name__}._sqlite3")
    return ctypes.CDLL(getattr(module, "__file__", None))


SQLITE = library()
SQLITE.sqlite3_errmsg.restype = ctypes.c_char_p
for function in ("open", "exec", "prepare_v2", "step", "finalize", "errmsg", "extended_errcode", "close"):
    getattr(SQLITE, f"sqlite3_{function}").argtypes = None
ROWS = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


class Connection:
    """What a C library would open."""

    def __init__(self, name=b":memory:"):
        self.handle = ctypes.c_void_p()
        self.result = SQLITE.sqlite3_open(name, ctypes.byref(self.handle))

    def run(self, text, rows=None):
        return SQLITE.sqlite3_exec(self.handle, text, rows, None, None)

    def prepare(self, text):
        statement = ctypes.c_void_p()
        result = SQLITE.sqlite3_prepare_v2(self.handle, text, -1, ctypes.byref(statement), None)
        return result, statement

    def message(self):
        return SQLITE.sqlite3_errmsg(self.handle)


def executes(connection):
    assert connection.run(b"create table items (id integer primary key, name text)") == 0
    assert connection.run(b"insert into items values (1, 'secret'), (2, 'secret'); select name from items") == 0
    # What a row leads to runs on another connection: it is told by itself.
    other, seen = Connection(), []

    def row(_, columns, values, names):
        seen.append(other.run(b"select 11"))
        return 0

    assert connection.run(b"select id from items", ROWS(row)) == 0
    assert seen == [0, 0]
    # The one that asks for no more rows aborts it.
    assert connection.run(b"select count(*) from items", ROWS(lambda *_: 1)) == 4
    # SQLITE_CONSTRAINT.
    assert connection.run(b"insert into items values (1, 'secret')") == 19
    SQLITE.sqlite3_close(other.handle)


def failures(connection):
    # Nobody asks what it was.
    assert connection.run(b"select nothing from items") == 1
    assert connection.prepare(b"selec 'secret'")[0] == 1
    # It was compiled, and something else fails.
    result, prepared = connection.prepare(b"select 21 from items")
    assert result == 0
    assert Connection(b"/nowhere/shop.db").message()
    assert SQLITE.sqlite3_blob_open(connection.handle, b"main", b"nothing", b"name", ctypes.c_int64(1), 0, ctypes.byref(ctypes.c_void_p())) == 1
    assert connection.message() and connection.message()
    # The same asked for twice.
    assert connection.prepare(b"select nothing from items where name = 'secret'")[0] == 1
    assert connection.message() and connection.message()
    # An error that comes when it runs.
    result, failing = connection.prepare(b"select abs(-9223372036854775808) from items")
    assert result == 0
    assert SQLITE.sqlite3_step(failing) == 1
    assert connection.message()
    SQLITE.sqlite3_finalize(failing)
    SQLITE.sqlite3_finalize(prepared)


def main():
    connection = Connection()
    print(sqlite3.sqlite_version, flush=True)
    sys.stdin.readline()
    executes(connection)
    failures(connection)
    SQLITE.sqlite3_close(connection.handle)
    print("done", flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main()
