"""Tornado's own server: `python -m servers.tornado_app PORT`. Its calls are
made by its own client, or by that which a request names.
"""

import asyncio
import sys

from tornado.httpclient import AsyncHTTPClient
from tornado.web import Application, RequestHandler

from servers import work


async def get(library, url):
    if library == "tornado":
        return await AsyncHTTPClient().fetch(url)
    return await work.get(library, url)


class Handler(RequestHandler):
    async def get(self):
        await work.work(self.request.path, self.request.query, get)
        self.write("ok")

    async def post(self):
        await self.get()


async def main():
    AsyncHTTPClient.configure(None, max_clients=64)
    Application([("/.*", Handler)]).listen(int(sys.argv[1]), "127.0.0.1")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
