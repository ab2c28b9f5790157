"""Ways in which a request's work is handed to another thread or process.

Each takes the URLs of the request's calls, in `BLOCKING` for code that blocks and
in `TASKS` for a coroutine. Only the standard library of Python 3.8 is needed.

With `APP_UNOWNED=1` work of no request goes through the same executor all the time:
`id=background-work`.

Run as a program it fetches the URLs that it is given, or serves `/handoff/WAY` on
`HOST PORT` for interpreters without packages.
"""

import asyncio
import concurrent.futures
import contextlib
import itertools
import multiprocessing
import multiprocessing.pool
import os
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request

# Its threads are started when they are needed for the first time, by
# whichever request that is.
executor = concurrent.futures.ThreadPoolExecutor(8)
inner = concurrent.futures.ThreadPoolExecutor(8)

# Made once: a process that is forked for a request has it, too.
urllib.request.install_opener(urllib.request.build_opener())


def fetch(url):
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.status


def fetch_all(urls):
    return [fetch(url) for url in urls]


async def get(url):
    """The same, with the event loop."""
    parts = urllib.parse.urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    target = f"{parts.path}?{parts.query}"
    head = f"GET {target} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode())
    answer = await reader.read()
    writer.close()
    return int(answer.split()[1])


class BackgroundLoop:
    """An event loop in a thread of its own, started when it is first asked for."""

    def __init__(self):
        self.loop = None
        self.lock = threading.Lock()

    def get(self):
        with self.lock:
            if self.loop is None:
                self.loop = asyncio.new_event_loop()
                threading.Thread(target=self.loop.run_forever, daemon=True).start()
            return self.loop


background_loop = BackgroundLoop()


class LibraryPool:
    """A pool of another kind, whose threads serve whoever comes."""

    def __init__(self):
        self.pool = None
        self.lock = threading.Lock()

    def get(self):
        with self.lock:
            if self.pool is None:
                self.pool = multiprocessing.pool.ThreadPool(4)
            return self.pool


library_pool = LibraryPool()


def submit(urls):
    return [future.result() for future in [executor.submit(fetch, url) for url in urls]]


def mapped(urls):
    return list(executor.map(fetch, urls))


def own_executor(urls):
    with concurrent.futures.ThreadPoolExecutor(len(urls)) as own:
        return list(own.map(fetch, urls))


def nested(urls):
    """Work that submits work."""
    work = executor.submit(lambda: [inner.submit(fetch, url) for url in urls])
    return [future.result() for future in work.result()]


def loop_in_executor(urls):
    """Work that runs an event loop of its own."""

    async def all_at_once():
        return await asyncio.gather(*(get(url) for url in urls))

    return executor.submit(lambda: asyncio.run(all_at_once())).result()


def thread(urls):
    """Not waited for."""
    threading.Thread(target=fetch_all, args=(urls,)).start()


def timer(urls):
    threading.Timer(0.01, fetch_all, (urls,)).start()


def other_loop(urls):
    loop = background_loop.get()
    return [asyncio.run_coroutine_threadsafe(get(url), loop).result() for url in urls]


def library(urls):
    return library_pool.get().map(fetch, urls)


def process(urls):
    worker = multiprocessing.get_context("fork").Process(target=fetch_all, args=(urls,))
    worker.start()
    worker.join()


def program(urls):
    subprocess.run([sys.executable, __file__, *urls], check=True)


# Fetches targets from a host and a port, as a program that is up in a moment.
SHELL = r"""
host=$1 port=$2; shift 2
for target; do
  exec 3<>"/dev/tcp/$host/$port" || exit
  printf 'GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n' "$target" "$host" >&3
  IFS= read -r -N 65536 answer <&3
  [[ $answer == "HTTP/1.1 200 "* ]] || exit
done
"""


def shell(urls):
    """As `program`, without Python."""
    parts = [urllib.parse.urlsplit(url) for url in urls]
    targets = [f"{part.path}?{part.query}" for part in parts]
    server = [parts[0].hostname, str(parts[0].port)]
    subprocess.run(["bash", "-c", SHELL, "shell", *server, *targets], check=True)


BLOCKING = {
    "submit": submit,
    "map": mapped,
    "own_executor": own_executor,
    "nested": nested,
    "loop_in_executor": loop_in_executor,
    "thread": thread,
    "timer": timer,
    "other_loop": other_loop,
    "library": library,
    "process": process,
    "program": program,
    "shell": shell,
}


async def task_submit(urls):
    futures = [executor.submit(fetch, url) for url in urls]
    return await asyncio.gather(*map(asyncio.wrap_future, futures))


async def task_run_in_executor(urls):
    loop = asyncio.get_running_loop()
    return await asyncio.gather(*(loop.run_in_executor(None, fetch, url) for url in urls))


async def task_threadsafe(urls):
    """A thread that asks the loop to run coroutines."""
    loop = asyncio.get_running_loop()

    def work():
        return [asyncio.run_coroutine_threadsafe(get(url), loop).result() for url in urls]

    return await loop.run_in_executor(None, work)


async def task_call_soon_threadsafe(urls):
    """A thread that asks the loop to call functions, which make tasks."""
    loop = asyncio.get_running_loop()
    started = asyncio.Queue()

    def start(url):
        started.put_nowait(loop.create_task(get(url)))

    def work():
        for url in urls:
            loop.call_soon_threadsafe(start, url)

    await loop.run_in_executor(None, work)
    return [await (await started.get()) for _ in urls]


async def task_thread(urls):
    thread(urls)


def in_executor(way):
    """A way that blocks, for a coroutine."""

    async def task(urls):
        return await asyncio.get_running_loop().run_in_executor(None, way, urls)

    return task


TASKS = {
    "submit": task_submit,
    "run_in_executor": task_run_in_executor,
    "threadsafe": task_threadsafe,
    "call_soon_threadsafe": task_call_soon_threadsafe,
    "thread": task_thread,
    "map": in_executor(mapped),
    "own_executor": in_executor(own_executor),
    "nested": in_executor(nested),
    "loop_in_executor": in_executor(loop_in_executor),
    "library": in_executor(library),
    "process": in_executor(process),
    "program": in_executor(program),
    "shell": in_executor(shell),
}


def unowned_work():
    base = os.environ["APP_DOWNSTREAM"]
    for call in itertools.count():
        with contextlib.suppress(OSError):
            executor.submit(fetch, f"{base}?id=background-work&call={call}").result()
        time.sleep(0.005)


if os.environ.get("APP_UNOWNED") == "1":
    threading.Thread(target=unowned_work, daemon=True).start()


class Connection(asyncio.Protocol):
    """A request's task is made where its last bytes are read, as servers for
    asyncio do."""

    def connection_made(self, transport):
        self.transport = transport
        self.received = b""

    def data_received(self, data):
        self.received += data
        while b"\r\n\r\n" in self.received:
            head, _, self.received = self.received.partition(b"\r\n\r\n")
            target = urllib.parse.urlsplit(head.split()[1].decode())
            asyncio.get_running_loop().create_task(self.answer(target))

    async def answer(self, target):
        query = dict(urllib.parse.parse_qsl(target.query))
        status = "200 OK"
        if target.path.startswith("/handoff/"):
            base = os.environ["APP_DOWNSTREAM"]
            tag, count = query.get("id", "none"), int(query.get("n", "1"))
            urls = [f"{base}?id={tag}&call={call}" for call in range(count)]
            try:
                await TASKS[target.path.split("/")[2]](urls)
            except Exception as error:
                print(repr(error), file=sys.stderr)
                status = "500 Internal Server Error"
        head = f"HTTP/1.1 {status}\r\nContent-Length: 3\r\nContent-Type: text/plain\r\n\r\n"
        self.transport.write(head.encode() + b"ok\n")


async def serve(host, port):
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Connection, host, port, backlog=256)
    await server.serve_forever()


if __name__ == "__main__":
    if sys.argv[1].startswith("http:"):
        fetch_all(sys.argv[1:])
    else:
        asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
