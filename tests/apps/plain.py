"""A service of the standard library alone, for interpreters without packages:
`plain.py KIND HOST PORT`, from CPython 3.8 on.

`asyncio` serves with a protocol that makes a task for each request, `streams`
with asyncio's streams, which make one for each connection, and `threads` with
`http.server`, which makes a thread for each connection.

`/downstream` makes `n` calls, one after the other, `/gather` all at once and
`/to_thread` all at once in threads; each carries the request's id and a number
of its own. `/idle?ms=N` only waits. `APP_DOWNSTREAM` is the base URL that they
call. What begins with a zero byte is no request: `asyncio` sends it back as it
came. Their connections are kept in a pool that all requests share, and that a
task or thread of no request has filled. With `APP_IDENTITY`, a key and a
certificate, it serves over TLS; `APP_AUTHORITY` is whom it trusts.
"""

import asyncio
import contextvars
import http.client
import os
import queue
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

try:
    import ssl
except ImportError:  # Left out of the static build.
    ssl = None

DOWNSTREAM = urlsplit(os.environ.get("APP_DOWNSTREAM", "http://127.0.0.1:1/"))
# For calls to `https`, and for serving.
CLIENT_TLS = SERVER_TLS = None
if DOWNSTREAM.scheme == "https":
    CLIENT_TLS = ssl.create_default_context(cadata=os.environ["APP_AUTHORITY"])
if "APP_IDENTITY" in os.environ:
    SERVER_TLS = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    with tempfile.NamedTemporaryFile("w") as identity:
        identity.write(os.environ["APP_IDENTITY"])
        identity.flush()
        SERVER_TLS.load_cert_chain(identity.name)
# Connections that the pool has before the first request.
FILLED = 8


def parse(target):
    """Path, and the parameters that matter."""
    parts = urlsplit(target)
    wishes = {name: values[0] for name, values in parse_qs(parts.query).items()}
    return parts.path, wishes


def calls(wishes):
    """The targets of one request's calls."""
    tag = wishes.get("id", "none")
    return ["/?id=%s&call=%d" % (tag, call) for call in range(int(wishes.get("n", "0")))]


# === Blocking calls ===


class BlockingPool:
    """Connections that threads share."""

    def __init__(self):
        self.idle = queue.Queue()

    def fill(self):
        for _ in range(FILLED):
            connection = self.connection()
            connection.connect()
            self.idle.put(connection)

    def connection(self):
        address = (DOWNSTREAM.hostname, DOWNSTREAM.port)
        if CLIENT_TLS:
            return http.client.HTTPSConnection(*address, timeout=30, context=CLIENT_TLS)
        return http.client.HTTPConnection(*address, timeout=30)

    def get(self, target):
        try:
            connection = self.idle.get_nowait()
        except queue.Empty:
            connection = self.connection()
        connection.request("GET", target)
        body = connection.getresponse().read()
        self.idle.put(connection)
        return body


blocking = BlockingPool()


# === Calls on the event loop ===


class Pool:
    """Connections that tasks share."""

    def __init__(self):
        self.idle = []

    async def fill(self):
        for _ in range(FILLED):
            self.idle.append(await self.open())

    async def open(self):
        address = (DOWNSTREAM.hostname, DOWNSTREAM.port)
        return await asyncio.open_connection(*address, ssl=CLIENT_TLS)

    async def get(self, target):
        reader, writer = self.idle.pop() if self.idle else await self.open()
        head = "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n" % (target, DOWNSTREAM.netloc)
        writer.write(head.encode())
        answer = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1])
            for line in answer.lower().split(b"\r\n")
            if line.startswith(b"content-length:")
        )
        body = await reader.readexactly(length)
        self.idle.append((reader, writer))
        return body


pool = Pool()


async def in_thread(function, *arguments):
    """`asyncio.to_thread`, which 3.8 does not have."""
    loop = asyncio.get_running_loop()
    context = contextvars.copy_context()
    return await loop.run_in_executor(None, context.run, function, *arguments)


async def answer(target):
    """Does what a request asks for, and returns the bytes of the response."""
    path, wishes = parse(target)
    results = []
    if path == "/downstream":
        for call in calls(wishes):
            results.append(await pool.get(call))
    elif path == "/gather":
        results = await asyncio.gather(*map(pool.get, calls(wishes)))
    elif path == "/to_thread":
        results = await asyncio.gather(
            *(in_thread(blocking.get, call) for call in calls(wishes))
        )
    elif path == "/idle":
        await asyncio.sleep(int(wishes.get("ms", "0")) / 1000)
    body = b"\n".join(results) or b"hello\n"
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


class Protocol(asyncio.Protocol):
    """HTTP/1.1 without request bodies, a task for each request."""

    def connection_made(self, transport):
        self.transport = transport
        self.received = b""
        self.tasks = set()

    def data_received(self, data):
        if data[:1] == b"\0":
            self.transport.write(data)
            return
        self.received += data
        while b"\r\n\r\n" in self.received:
            head, self.received = self.received.split(b"\r\n\r\n", 1)
            target = head.split(b" ", 2)[1].decode()
            task = asyncio.get_running_loop().create_task(self.respond(target))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def respond(self, target):
        self.transport.write(await answer(target))

    def connection_lost(self, error):
        for task in self.tasks:
            task.cancel()


async def stream(reader, writer):
    """The same over streams: one task for a connection's requests."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(await answer(head.split(b" ", 2)[1].decode()))
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def serve(kind, host, port):
    loop = asyncio.get_running_loop()
    filling = loop.create_task(pool.fill())
    if kind == "asyncio":
        server = await loop.create_server(Protocol, host, port, backlog=16384, ssl=SERVER_TLS)
    else:
        server = await asyncio.start_server(stream, host, port, backlog=16384, ssl=SERVER_TLS)
    await filling
    await server.serve_forever()


# === Threads ===


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body in one piece each; without this they wait for each other.
    disable_nagle_algorithm = True

    def do_GET(self):
        path, wishes = parse(self.path)
        targets = calls(wishes) if path == "/downstream" else []
        body = b"\n".join(map(blocking.get, targets)) or b"hello\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


def main():
    kind, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
    filler = threading.Thread(target=blocking.fill)
    filler.start()
    filler.join()
    if kind == "threads":
        server = Server((host, port), Handler)
        if SERVER_TLS:
            # The handshake is left to the connection's own thread.
            server.socket = SERVER_TLS.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        server.serve_forever()
    else:
        asyncio.run(serve(kind, host, port))


if __name__ == "__main__":
    main()
