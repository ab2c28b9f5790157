"""Outgoing HTTP for the test applications, by the library a request names.

Every library keeps one pool of connections for the life of the application,
as a real service does: `httpx` and `aiohttp` on the event loop, `requests` and
`urllib3` on threads. A call returns the status and the body's text.
"""

import aiohttp
import httpx
import requests
import urllib3

POOL = 32
TIMEOUT = 30


class BlockingClients:
    """`requests` and `urllib3`, safe to share between threads."""

    def __init__(self):
        self.session = requests.Session()
        adapter = requests.adapters.HTTPAdapter(pool_connections=POOL, pool_maxsize=POOL)
        self.session.mount("http://", adapter)
        self.session.mount("https://", adapter)
        self.manager = urllib3.PoolManager(num_pools=POOL, maxsize=POOL)

    def get(self, library, url, headers=None):
        if library == "requests":
            response = self.session.get(url, timeout=TIMEOUT, headers=headers)
            return response.status_code, response.text
        if library == "urllib3":
            response = self.manager.request("GET", url, timeout=TIMEOUT, headers=headers)
            return response.status, response.data.decode()
        raise ValueError(f"no blocking client is called {library!r}")

    def close(self):
        self.session.close()
        self.manager.clear()


class AsyncClients:
    """`httpx` and `aiohttp`; made and closed on the event loop."""

    def __init__(self):
        limits = httpx.Limits(max_connections=POOL, max_keepalive_connections=POOL)
        self.httpx = httpx.AsyncClient(limits=limits, timeout=TIMEOUT)
        self.aiohttp = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=POOL),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT),
        )

    async def get(self, library, url, headers=None):
        if library == "httpx":
            response = await self.httpx.get(url, headers=headers)
            return response.status_code, response.text
        if library == "aiohttp":
            async with self.aiohttp.get(url, headers=headers) as response:
                return response.status, await response.text()
        raise ValueError(f"no client on the event loop is called {library!r}")

    async def close(self):
        await self.httpx.aclose()
        await self.aiohttp.close()


def is_async(library):
    """Whether the library awaits; the other ones block."""
    return library in ("httpx", "aiohttp")


def with_query(url, **pairs):
    """The URL with further query parameters."""
    query = "&".join(f"{name}={value}" for name, value in pairs.items())
    return f"{url}{'&' if '?' in url else '?'}{query}"


def context_headers(wish, received):
    """Headers with the trace context that a request wishes its calls to carry:
    a `traceparent` to send, or `forward` for the caller's own, unchanged.
    """
    if wish == "forward":
        names = ("traceparent", "tracestate")
        return {name: received[name] for name in names if name in received}
    return {"traceparent": wish} if wish else None
