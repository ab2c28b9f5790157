"""The application of aiohttp's own server: `python -m aiohttp.web
servers.aiohttp_app:application`, or with `--uvloop` as this module's `main`.

`/after` makes its calls in the handler itself, when the response has been
sent to its end.
"""

import sys

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


if __name__ == "__main__":
    import uvloop

    loop = uvloop.new_event_loop()
    web.run_app(application(), host="127.0.0.1", port=int(sys.argv[1]), loop=loop)
