"""Requests that query PostgreSQL and Redis from threads (WSGI: `gunicorn
databases_flask:app`), like those of `databases_app`.
"""

import os

import django
import psycopg
import psycopg2
import psycopg2.pool
import redis
from django.conf import settings
from flask import Flask, request
from psycopg2 import sql
from psycopg2.extras import RealDictCursor
from redis.exceptions import ResponseError
from sqlalchemy import create_engine, text

HOST, PORT = os.environ["APP_POSTGRES"].rsplit(":", 1)
REDIS_HOST, REDIS_PORT = os.environ["APP_REDIS"].rsplit(":", 1)
WHERE = f"host={HOST} port={PORT} user=me dbname=shop"

settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": HOST,
            "PORT": PORT,
            "USER": "me",
            "NAME": "shop",
            "CONN_MAX_AGE": 60,
        }
    }
)
django.setup()

from django.db import connection as django_connection  # noqa: E402
from django.db import models  # noqa: E402


class Item(models.Model):
    id = models.IntegerField(primary_key=True)
    name = models.TextField()

    class Meta:
        app_label = "shop"
        db_table = "items"


app = Flask(__name__)
engine = create_engine(f"postgresql+psycopg2://me@{HOST}:{PORT}/shop", pool_size=4)
pool = psycopg2.pool.ThreadedConnectionPool(4, 8, WHERE)
client = redis.Redis(host=REDIS_HOST, port=int(REDIS_PORT))

# What is long is read later, where it still is.
LONG = "select id from items where " + " or ".join(["name = %s"] * 150)
LONG_BYTES = LONG.replace("select id", "select  id").replace("where ", "where /* caf\u00e9 */ ").encode()


def queries():
    id, n = request.args["id"], int(request.args.get("n", "1"))
    return [f"{id}_{call}" for call in range(n)]


@app.get("/")
def root():
    return {}


@app.get("/psycopg2")
def over_psycopg2():
    connection = pool.getconn()
    try:
        for query in queries():
            with connection.cursor() as cursor:
                cursor.execute(f'select %s as "{query}"', ("secret",))
                cursor.fetchall()
        connection.commit()
    finally:
        pool.putconn(connection)
    return {}


@app.get("/psycopg")
def over_psycopg():
    with psycopg.connect(WHERE, autocommit=True) as connection:
        for query in queries():
            connection.execute(f'select %s as "{query}"', ("secret",)).fetchall()
    return {}


@app.get("/sqlalchemy")
def over_sqlalchemy():
    with engine.connect() as connection:
        for query in queries():
            connection.execute(text(f'select :value as "{query}"'), {"value": "secret"}).all()
    return {}


@app.get("/django")
def over_django():
    for query in queries():
        list(Item.objects.filter(id=1).extra(select={query: "'secret'"}))
    return {}


@app.get("/redis")
def over_redis():
    for query in queries():
        try:
            client.evalsha(query.replace("-", "_"), 1, "secret")
        except ResponseError as error:
            assert "NOSCRIPT" in str(error) or "No matching script" in str(error), error
    return {}


@app.get("/statements")
def statements():
    """The same through everything that has a statement with places."""
    with psycopg.connect(WHERE, autocommit=True) as connection:
        connection.execute("select name from items where id = %s and name <> %s", (1, "secret")).fetchall()
    with engine.connect() as connection:
        connection.execute(text("select name from items where id = :id and name <> :name"), {"id": 1, "name": "secret"})
    list(Item.objects.filter(id__in=[1, 2]).exclude(name="secret"))
    connection = pool.getconn()
    with connection.cursor() as cursor:
        cursor.execute("select  id from items where name <> %s -- why", ("it's secret",))
        cursor.execute("select  id from items where id = %(id)s", vars={"id": 1})
        cursor.execute("select  id from items where id in %s and " + "name <> %s", ((1, 2), "secret"))
    with connection.cursor(cursor_factory=RealDictCursor) as cursor:
        for name in ("secret", "other"):
            cursor.execute("select  name from items where name = %s", [name])
    connection.commit()
    pool.putconn(connection)
    with django_connection.cursor() as cursor:
        cursor.execute(LONG, ["secret"] * 150)
    return {}


@app.get("/forms")
def forms():
    """Statements in every form of a call of psycopg2."""
    connection = pool.getconn()
    cursor = connection.cursor()
    execute, values = cursor.execute, ("secret",)
    execute("select  id from items where name = %s", values)
    call = ("select  id from items where name >= %s", values)
    cursor.execute(*call)
    named = {"query": "select  id from items where name <= %s", "vars": values}
    cursor.execute(**named)
    cursor.execute(b"select  id from items where name < %s", values)
    cursor.execute(sql.SQL("select  id from items where name > %s"), values)
    several = sql.SQL("select  id from {} where name like %s").format(sql.Identifier("items"))
    cursor.execute(several, values)
    cursor.execute(LONG_BYTES, ["secret"] * 150)
    connection.commit()
    pool.putconn(connection)
    return {}


@app.get("/large")
def large():
    """A row of 100 MB, a statement of a megabyte, and a binary parameter of one."""
    connection = psycopg2.connect(WHERE)
    with connection.cursor() as cursor:
        cursor.execute("select repeat('x', 100000000) as large")
        cursor.fetchall()
        cursor.execute("select '" + "secret" * 200_000 + "' as literal")
        cursor.fetchall()
    connection.close()
    with psycopg.connect(WHERE, autocommit=True) as other:
        other.execute("select %b as bound", (b"secret" * 200_000,)).fetchall()
        other.execute("select %s as next", ("secret",)).fetchall()
    return {}


@app.get("/details")
def details():
    """One of each, over connections of their own."""
    connection = psycopg2.connect(WHERE)
    with connection.cursor() as cursor:
        cursor.execute("insert into items values (%s, %s)", (20, "it's secret"))
        cursor.execute("select repeat(name, 1000) from items, generate_series(1, 500)")
        cursor.fetchall()
        try:
            cursor.execute("select * from nosuch")
        except psycopg2.Error:
            connection.rollback()
    connection.close()
    with redis.Redis(host=REDIS_HOST, port=int(REDIS_PORT), db=2) as own:
        own.delete("a")
        own.set("a", "secret")
        try:
            own.lpush("a", "secret")
        except ResponseError:
            pass
        with own.pipeline(transaction=True) as pipeline:
            pipeline.get("a").get("a").execute()
    return {}
