"""The application of aiohttp's own server: `python -m aiohttp.web
servers.aiohttp_app:application`, or this module with a port and `asyncio` or,
by default, on uvloop.

`/after` makes its calls in the handler itself, when the response has been
sent to its end.
"""

import asyncio
import os
import ssl
import sys
import tempfile

from aiohttp import web

from servers.work import work


async def handler(request):
    if request.path == "/after":
        response = web.StreamResponse(headers={"content-length": "2"})
        await response.prepare(request)
        await response.write(b"ok")
        await response.write_eof()
        await work("/downstream", request.query_string)
        return response
    await work(request.path, request.query_string)
    return web.Response(text="ok")


def application(argv=()):
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    return app


def identity():
    """What the service is to show its clients, or nothing without TLS."""
    if "APP_IDENTITY" not in os.environ:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(os.environ["APP_IDENTITY"])
        file.flush()
        context.load_cert_chain(file.name)
    return context


if __name__ == "__main__":
    port, *loops = sys.argv[1:]
    if loops == ["asyncio"]:
        loop = asyncio.new_event_loop()
    else:
        import uvloop

        loop = uvloop.new_event_loop()
    web.run_app(
        application(), host="127.0.0.1", port=int(port), ssl_context=identity(), loop=loop
    )
