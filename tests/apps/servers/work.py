"""What the servers' applications do for a request, whichever server it is.

`/` answers at once. The other paths make `n` calls that carry the request's
`id` and a number: `/downstream` one after the other, `/gather` all at once,
`/tasks` in a task each, `/later` in a task that outlives the response.
"""

import asyncio
import os
from urllib.parse import parse_qs

from client import AsyncClients, with_query

CLIENTS = []
LATER = set()


def calls(query):
    """The client and the URLs of a request with this query."""
    wishes = parse_qs(query)
    count = int(wishes.get("n", ["0"])[0])
    base = os.environ.get("APP_DOWNSTREAM", "")
    name = wishes.get("id", ["none"])[0]
    urls = [with_query(base, id=name, call=call) for call in range(count)]
    return wishes.get("client", [""])[0], urls


async def get(library, url):
    """One call, with clients that are made at the first."""
    if not CLIENTS:
        CLIENTS.append(AsyncClients())
    return await CLIENTS[0].get(library, url)


async def work(path, query, get=get):
    """Makes the calls of a request."""
    library, urls = calls(query)
    if path == "/downstream":
        for url in urls:
            await get(library, url)
    elif path == "/gather":
        await asyncio.gather(*(get(library, url) for url in urls))
    elif path == "/tasks":
        running = [asyncio.create_task(get(library, url)) for url in urls]
        for task in running:
            await task
    elif path == "/later":

        async def later():
            for url in urls:
                await get(library, url)

        task = asyncio.create_task(later())
        LATER.add(task)
        task.add_done_callback(LATER.discard)
