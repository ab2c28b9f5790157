"""Requests that query SQLite through other libraries (ASGI: `uvicorn
sqlite_orms:app`, with what `requirements-databases.txt` names).

Each request of a load makes `n` queries, marked as those of `sqlite_app` are.
"""

import aiosqlite
import django
from django.conf import settings
from fastapi import FastAPI
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from sqlite_items import FILE, fill

settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": FILE,
            "OPTIONS": {"timeout": 30},
        }
    }
)
django.setup()

from django.db import connection as django_connection  # noqa: E402
from django.db import models  # noqa: E402


class Item(models.Model):
    name = models.TextField()

    class Meta:
        app_label = "sqlite_orms"
        db_table = "items"
        managed = False


app = FastAPI()
engine = create_engine(f"sqlite:///{FILE}", pool_size=40)
async_engine = create_async_engine(f"sqlite+aiosqlite:///{FILE}")
fill()


@app.get("/")
async def root():
    return {}


@app.get("/sqlalchemy")
def over_sqlalchemy(id: str, n: int = 1):
    with engine.connect() as database:
        for call in range(n):
            query = text(f'select :value as "{id}_{call}" from items')
            assert len(database.execute(query, {"value": "secret"}).all()) == 3
    return {}


@app.get("/django")
def over_django(id: str, n: int = 1):
    with django_connection.cursor() as cursor:
        for call in range(n):
            cursor.execute(f'select %s as "{id}_{call}" from items', ["secret"])
            assert len(cursor.fetchall()) == 3
    return {}


@app.get("/aiosqlite")
async def over_aiosqlite(id: str, n: int = 1):
    async with aiosqlite.connect(FILE, timeout=30) as database:
        for call in range(n):
            query = f'select ? as "{id}_{call}" from items'
            assert len(await database.execute_fetchall(query, ("secret",))) == 3
    return {}


@app.get("/sqlalchemy/async")
async def over_async_sqlalchemy(id: str, n: int = 1):
    async with async_engine.connect() as database:
        for call in range(n):
            query = text(f'select :value as "{id}_{call}" from items')
            assert len((await database.execute(query, {"value": "secret"})).all()) == 3
    return {}


@app.get("/details")
def details():
    assert Item.objects.filter(name="lamp").count() == 1  # Django's ORM
    with engine.connect() as database:
        database.execute(text("select name from items where id = :id"), {"id": 2}).all()  # SQLAlchemy
    return {}
