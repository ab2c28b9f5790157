"""More ways in which a request's work leaves its task (ASGI: `uvicorn
flows_app:app`): those of `fastapi_app`, task groups of asyncio and anyio,
asynchronous generators, streamed responses, work that is cancelled, tens of
thousands of tasks, contexts that live for a moment, and requests that never
end.

With `APP_STARTUP=1` calls are made before the first request, with ids
`startup-await` and `startup-task`; those of `startup-task` go on.
"""

import asyncio
import contextvars
import itertools
import os
import sys
from contextlib import asynccontextmanager

import anyio
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

import fastapi_app
from client import with_query
from fastapi_app import BASE_URL, calls, get


async def startup_calls(tag, numbers):
    url = os.environ["APP_DOWNSTREAM"]
    for call in numbers:
        await get("aiohttp", with_query(url, id=tag, call=call))
        await asyncio.sleep(0.005)


@asynccontextmanager
async def lifespan(app):
    async with fastapi_app.lifespan(fastapi_app.app):
        going_on = None
        if os.environ.get("APP_STARTUP") == "1":
            going_on = asyncio.create_task(startup_calls("startup-task", itertools.count()))
            await startup_calls("startup-await", range(20))
        yield
        if going_on:
            going_on.cancel()


app = FastAPI(lifespan=lifespan)

if sys.version_info >= (3, 11):

    @app.get("/task_group")
    async def task_group(n: int = 1, id: str = "none", client: str = "aiohttp", url: str = BASE_URL):
        """Calls in a task group, from a task of another."""

        async def inner(call):
            async with asyncio.TaskGroup() as group:
                group.create_task(get(client, call))

        async with asyncio.TaskGroup() as group:
            for call in calls(url, id, n):
                group.create_task(inner(call))
        return {"made": n}


@app.get("/anyio")
async def anyio_group(n: int = 1, id: str = "none", client: str = "httpx", url: str = BASE_URL):
    """The same with anyio, half of the calls in its threads."""
    async with anyio.create_task_group() as group:
        for number, call in enumerate(calls(url, id, n)):
            if number % 2:
                blocking = fastapi_app.blocking.get
                group.start_soon(anyio.to_thread.run_sync, blocking, "requests", call)
            else:
                group.start_soon(get, client, call)
    return {"made": n}


async def answers(client, urls):
    for url in urls:
        yield await get(client, url)


@app.get("/generator")
async def generator(n: int = 1, id: str = "none", client: str = "httpx", url: str = BASE_URL):
    """Calls by an asynchronous generator."""
    return [answer async for answer in answers(client, calls(url, id, n))]


@app.get("/streamed")
async def streamed(n: int = 1, id: str = "none", client: str = "aiohttp", url: str = BASE_URL):
    """Calls while the response is being sent."""

    async def body():
        async for status, text in answers(client, calls(url, id, n)):
            yield f"{status} {text}\n"

    return StreamingResponse(body(), media_type="text/plain")


@app.get("/streamed_in_threads")
def streamed_in_threads(n: int = 1, id: str = "none", url: str = BASE_URL):
    """The same by a generator that blocks, in the thread pool."""

    def body():
        for call in calls(url, id, n):
            status, text = fastapi_app.blocking.get("requests", call)
            yield f"{status} {text}\n"

    return StreamingResponse(body(), media_type="text/plain")


@app.get("/cancelled")
async def cancelled(n: int = 1, id: str = "none", client: str = "aiohttp", url: str = BASE_URL):
    """Tasks that are cancelled, and call as they end."""

    async def work(call, started):
        try:
            started.set()
            await asyncio.sleep(60)
        finally:
            await get(client, call)

    tasks = []
    for call in calls(url, id, n):
        started = asyncio.Event()
        tasks.append(asyncio.create_task(work(call, started)))
        await started.wait()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return {"cancelled": n}


@app.get("/shielded")
async def shielded(n: int = 1, id: str = "none", client: str = "httpx", url: str = BASE_URL):
    """Calls that outlive the task that began them."""
    running = []

    async def work(call):
        running.append(asyncio.ensure_future(get(client, call)))
        await asyncio.shield(running[-1])

    for call in calls(url, id, n):
        task = asyncio.create_task(work(call))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await asyncio.gather(*running)
    return {"shielded": n}


@app.get("/swarm")
async def swarm(
    n: int = 1,
    id: str = "none",
    client: str = "aiohttp",
    url: str = BASE_URL,
    tasks: int = 1000,
):
    """Very many tasks at a time; the last of them make the calls."""
    gate = asyncio.Event()

    async def work(call):
        await gate.wait()
        if call:
            await get(client, call)

    wanted = calls(url, id, n)
    urls = [None] * max(tasks - len(wanted), 0) + wanted
    running = [asyncio.create_task(work(call)) for call in urls]
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(*running)
    return {"tasks": len(running)}


@app.get("/recycled")
async def recycled(n: int = 1, id: str = "none", client: str = "aiohttp", url: str = BASE_URL):
    """Calls in contexts whose addresses many others had just before."""

    async def nothing():
        pass

    for call in calls(url, id, n):
        for _ in range(20):
            await asyncio.create_task(nothing())
            contextvars.copy_context().run(int)
            contextvars.Context().run(int)
        await asyncio.create_task(get(client, call))
    return {"made": n}


@app.get("/forever")
async def forever(n: int = 1, id: str = "none", client: str = "aiohttp", url: str = BASE_URL):
    """Makes its calls and never answers."""
    for call in calls(url, id, n):
        await get(client, call)
    await asyncio.Event().wait()


app.mount("/", fastapi_app.app)
