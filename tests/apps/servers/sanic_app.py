"""The application of Sanic's own server: `sanic servers.sanic_app:app`.

`/after` makes its calls in the handler itself, when the response has been
sent to its end; `/blocking` with a library that blocks, and so without a
context being copied.
"""

from sanic import Sanic
from sanic.response import text

from client import BlockingClients
from servers.work import calls, work

blocking = BlockingClients()
app = Sanic("servers")
app.config.KEEP_ALIVE_TIMEOUT = 75


@app.route("/<path:path>", methods=["GET", "POST"])
async def handler(request, path):
    if path == "after":
        response = await request.respond()
        await response.send("ok")
        await response.eof()
        await work("/downstream", request.query_string)
        return None
    if path == "blocking":
        library, urls = calls(request.query_string)
        for url in urls:
            blocking.get(library, url)
        return text("ok")
    await work("/" + path, request.query_string)
    return text("ok")
