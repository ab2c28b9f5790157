"""The service that the test applications call: answers any request with its
own method, path and query, so that a caller can tell whose answer it got.

An ASGI application: `uvicorn downstream:app`. `?status=CODE` chooses the
status, `?delay_ms=N` waits before it answers and says so, `?size=N` answers
with so many bytes, `?chunked=1` without their length. With `APP_JITTER_MS` it
waits up to so long before each answer, by what it is asked for, so that
answers come in another order than requests.
"""

import asyncio
import os
import zlib
from urllib.parse import parse_qs

JITTER = int(os.environ.get("APP_JITTER_MS", "0"))


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    query = scope["query_string"].decode("latin-1")
    wishes = parse_qs(query)
    if "delay_ms" in wishes:
        print("the request waits", flush=True)
        await asyncio.sleep(int(wishes["delay_ms"][0]) / 1000)
    elif JITTER:
        await asyncio.sleep(zlib.crc32(scope["query_string"]) % JITTER / 1000)
    target = scope["path"] + ("?" + query if query else "")
    body = f"{scope['method']} {target}".encode()
    if "size" in wishes:
        body = b"x" * int(wishes["size"][0])
    headers = [(b"content-type", b"text/plain")]
    if "chunked" not in wishes:
        headers.append((b"content-length", str(len(body)).encode()))
    await send(
        {
            "type": "http.response.start",
            "status": int(wishes.get("status", ["200"])[0]),
            "headers": headers,
        }
    )
    await send({"type": "http.response.body", "body": body})
