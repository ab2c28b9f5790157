"""Requests whose calls of SQLite let other greenlets run before they are over
(WSGI: `gunicorn --worker-class gevent sqlite_greenlets:app`).

Each carries the request's id in the name of its table.
"""

from gevent import monkey

monkey.patch_all()

import sqlite3

import gevent
from flask import Flask, request

ROWS = 4
app = Flask(__name__)


@app.get("/")
def root():
    return {}


def rows():
    """Rows that wait for something."""
    for number in range(ROWS):
        gevent.sleep(0)
        yield (number,)


def database(mark):
    opened = sqlite3.connect(":memory:", isolation_level=None)
    opened.create_function("pause", 0, lambda: gevent.sleep(0))
    opened.execute(f'create table "{mark}_0" (id integer)')
    return opened


@app.get("/many")
def many():
    mark = request.args["id"]
    opened = database(mark)
    opened.executemany(f'insert into "{mark}_0" values (?)', rows())
    opened.close()
    return {}


@app.get("/inside")
def inside():
    """Waits within a statement for each row."""
    mark = request.args["id"]
    opened = database(mark)
    opened.executemany(f'insert into "{mark}_0" select pause() where ? >= 0', [(number,) for number in range(ROWS)])
    opened.close()
    return {}


@app.get("/script")
def script():
    mark = request.args["id"]
    opened = database(mark)
    opened.executescript(f'insert into "{mark}_0" select pause();' * ROWS)
    opened.close()
    return {}
