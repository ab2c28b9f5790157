"""The FastAPI application of the live tests (ASGI: `uvicorn fastapi_app:app`).

One endpoint per way in which a request's work can leave its task: awaiting,
`gather`, `create_task`, `asyncio.to_thread`, Starlette's thread pool, greenlets,
background tasks, and what `handoffs` adds. Each makes `n` calls whose query carries the request's id and
the call's number, so that the exact set of children is known. `APP_DOWNSTREAM`
is the base URL that they call when the request gives none.

With `APP_GREENLETS=1` greenlets are there from the start.

With `APP_UNOWNED=1` a task of the lifespan, and a thread that is as old as the
module, make calls all the time that belong to no request: `id=background-task`
and `id=background-thread`.
"""

import asyncio
import contextlib
import itertools
import os
import threading
import time
from contextlib import asynccontextmanager

from fastapi import BackgroundTasks, FastAPI, HTTPException, Query, Request, Response, WebSocket
from fastapi.responses import PlainTextResponse, StreamingResponse

import handoffs
from client import AsyncClients, BlockingClients, context_headers, is_async, with_query

if os.environ.get("APP_GREENLETS") == "1":
    import greenlet

blocking = BlockingClients()


async def unowned_calls():
    """Calls from a task that no request began, each in a task of its own."""
    url = os.environ["APP_DOWNSTREAM"]
    for call in itertools.count():
        url_of_call = with_query(url, id="background-task", call=call)
        library = ("httpx", "aiohttp")[call % 2]
        await asyncio.create_task(get(library, url_of_call))
        await asyncio.sleep(0.005)


def unowned_blocking_calls():
    """The same from a thread that no request began."""
    url = os.environ["APP_DOWNSTREAM"]
    for call in itertools.count():
        with contextlib.suppress(OSError):
            blocking.get("requests", with_query(url, id="background-thread", call=call))
        time.sleep(0.005)


if os.environ.get("APP_UNOWNED") == "1":
    threading.Thread(target=unowned_blocking_calls, daemon=True).start()


@asynccontextmanager
async def lifespan(app):
    app.state.clients = AsyncClients()
    unowned = None
    if os.environ.get("APP_UNOWNED") == "1":
        unowned = asyncio.create_task(unowned_calls())
    yield
    if unowned:
        unowned.cancel()
    await app.state.clients.close()
    blocking.close()


app = FastAPI(lifespan=lifespan)

BASE_URL = Query(default=None, alias="url")


def calls(url, tag, count):
    """The URLs of one request's calls."""
    base = url or os.environ["APP_DOWNSTREAM"]
    return [with_query(base, id=tag, call=call) for call in range(count)]


async def get(library, url, headers=None):
    """One call: on the loop, or in a thread for a library that blocks."""
    if is_async(library):
        if not hasattr(app.state, "clients"):
            # The server has no lifespan.
            app.state.clients = AsyncClients()
        return await app.state.clients.get(library, url, headers)
    return await asyncio.to_thread(blocking.get, library, url, headers)


@app.get("/", response_class=PlainTextResponse)
async def index():
    return "hello\n"


@app.get("/items/{item_id}")
async def item(item_id: int):
    return {"id": item_id, "name": f"item {item_id}"}


@app.get("/status/{code}")
async def status(code: int):
    body = None if code in (204, 304) else f"{code}\n"
    return Response(body, status_code=code, media_type="text/plain")


@app.api_route("/echo", methods=["POST", "PUT"])
async def echo(request: Request):
    return Response(await request.body(), media_type="application/octet-stream")


@app.get("/stream")
async def stream(parts: int = 5):
    async def body():
        for part in range(parts):
            yield f"part {part}\n"
            await asyncio.sleep(0)

    return StreamingResponse(body(), media_type="text/plain")


@app.get("/error")
async def error():
    raise RuntimeError("the endpoint failed")


@app.get("/missing")
async def missing():
    raise HTTPException(status_code=404)


@app.websocket("/ws")
async def websocket(socket: WebSocket):
    """Sends back each message, until the other side closes."""
    await socket.accept()
    async for text in socket.iter_text():
        await socket.send_text(text)


@app.get("/downstream")
async def downstream(
    request: Request,
    n: int = 1,
    id: str = "none",
    client: str = "httpx",
    url: str = BASE_URL,
    traceparent: str | None = None,
):
    """One call after the other, with a trace context where one is wished."""
    headers = context_headers(traceparent, request.headers)
    return [await get(client, call, headers) for call in calls(url, id, n)]


@app.get("/greenlets")
async def greenlets(n: int = 3, id: str = "none", client: str = "httpx", url: str = BASE_URL):
    """Code that blocks, in a greenlet that lets the loop await for it: the way
    in which SQLAlchemy drives asynchronous drivers."""

    def blocking_code():
        driver = greenlet.getcurrent().parent
        return [driver.switch(get(client, call)) for call in calls(url, id, n)]

    worker = greenlet.greenlet(blocking_code)
    worker.gr_context = greenlet.getcurrent().gr_context
    result = worker.switch()
    while not worker.dead:
        result = worker.switch(await result)
    return result


@app.get("/gather")
async def gather(n: int = 3, id: str = "none", client: str = "httpx", url: str = BASE_URL):
    """All calls at once."""
    return await asyncio.gather(*(get(client, call) for call in calls(url, id, n)))


@app.get("/tasks")
async def tasks(n: int = 3, id: str = "none", client: str = "httpx", url: str = BASE_URL):
    """A named task per call."""
    running = [
        asyncio.create_task(get(client, call), name=f"{id}-{number}")
        for number, call in enumerate(calls(url, id, n))
    ]
    return [await task for task in running]


@app.get("/to_thread")
async def to_thread(n: int = 1, id: str = "none", client: str = "requests", url: str = BASE_URL):
    """Blocking calls in the loop's default executor, all at once."""
    return await asyncio.gather(
        *(asyncio.to_thread(blocking.get, client, call) for call in calls(url, id, n))
    )


@app.get("/threadpool")
def threadpool(n: int = 1, id: str = "none", client: str = "requests", url: str = BASE_URL):
    """Blocking calls in Starlette's thread pool, because this is no coroutine."""
    return [blocking.get(client, call) for call in calls(url, id, n)]


@app.get("/background")
async def background(
    later: BackgroundTasks,
    n: int = 1,
    id: str = "none",
    client: str = "httpx",
    url: str = BASE_URL,
):
    """Calls after the response was sent."""

    async def work():
        for call in calls(url, id, n):
            await get(client, call)

    later.add_task(work)
    return {"scheduled": n}


@app.post("/receive")
async def receive(
    request: Request,
    later: BackgroundTasks,
    n: int = 1,
    id: str = "none",
    client: str = "httpx",
    url: str = BASE_URL,
):
    """One call at once, the others after the body, the last after the response."""
    first, *rest = calls(url, id, n)
    await get(client, first)
    body = await request.body()
    for call in rest[:-1]:
        await get(client, call)

    async def work():
        for call in rest[-1:]:
            await get(client, call)

    later.add_task(work)
    return {"received": len(body)}


@app.get("/impatient")
async def impatient(n: int = 1, id: str = "none", client: str = "httpx", url: str = BASE_URL):
    """Calls at once, most of which are given up in the middle."""

    async def hurried(number, call):
        with contextlib.suppress(asyncio.TimeoutError):
            slow = call + "&delay_ms=20"
            await asyncio.wait_for(get(client, slow), timeout=0.002 + 0.015 * number)

    await asyncio.gather(*(hurried(*pair) for pair in enumerate(calls(url, id, n))))
    return {"tried": n}


@app.get("/handoff/{way}")
async def handoff(way: str, n: int = 1, id: str = "none", url: str = BASE_URL):
    """What `handoffs` does with the calls."""
    await handoffs.TASKS[way](calls(url, id, n))
    return {"way": way}
