"""What the benchmark counts of an interpreter itself: for each line on its
standard input it prints one of JSON, nanoseconds for each `create_task` that
is awaited (`create_task`), for each `copy_context().run` (`copy_context`), for
each row that SQLite finds by its primary key (`sqlite_select`) and for each
system call that is of no interest (`getppid`).

Of several short runs the fastest counts: what else the machine does only adds.
"""

import asyncio
import contextvars
import json
import os
import sqlite3
import sys
import time

RUNS = 15
TASKS = 4000
COPIES = 8000
QUERIES = 4000
CALLS = 50000


async def nothing():
    pass


async def of_tasks():
    loop = asyncio.get_running_loop()
    best = float("inf")
    for _ in range(RUNS):
        start = time.perf_counter()
        for _ in range(TASKS):
            await loop.create_task(nothing())
        best = min(best, time.perf_counter() - start)
    return best / TASKS


def of_copies():
    def inside():
        pass

    best = float("inf")
    for _ in range(RUNS):
        start = time.perf_counter()
        for _ in range(COPIES):
            contextvars.copy_context().run(inside)
        best = min(best, time.perf_counter() - start)
    return best / COPIES


def of_queries():
    database = sqlite3.connect(":memory:")
    database.execute("create table items (id integer primary key, name text)")
    database.executemany("insert into items values (?, ?)", [(item, "lamp") for item in range(100)])

    def find(item):
        return database.execute("select name from items where id = ?", (item,)).fetchone()

    best = float("inf")
    for _ in range(RUNS):
        start = time.perf_counter()
        for number in range(QUERIES):
            find(number % 100)
        best = min(best, time.perf_counter() - start)
    database.close()
    return best / QUERIES


def of_calls():
    best = float("inf")
    for _ in range(RUNS):
        start = time.perf_counter()
        for _ in range(CALLS):
            os.getppid()
        best = min(best, time.perf_counter() - start)
    return best / CALLS


def main():
    print("ready", flush=True)
    for _ in sys.stdin:
        measured = {
            "create_task": asyncio.run(of_tasks()) * 1e9,
            "copy_context": of_copies() * 1e9,
            "sqlite_select": of_queries() * 1e9,
            "getppid": of_calls() * 1e9,
        }
        print(json.dumps(measured), flush=True)


if __name__ == "__main__":
    main()
