"""A Flask application for servers that run a greenlet for each connection:
gunicorn's gevent and eventlet workers.

`APP_SCHEDULER` names the library whose greenlets it uses itself, `gevent` or
`eventlet`; its threads, sockets and locks are replaced by that library's.
`APP_DOWNSTREAM` is the base URL that it calls. With `APP_UNOWNED=1` calls of
no request are made all the time, by a greenlet and by a thread that are there
from the start.
"""

import http.client
import os

SCHEDULER = os.environ["APP_SCHEDULER"]

if SCHEDULER == "gevent":
    from gevent import monkey

    monkey.patch_all()
    import gevent
    import gevent.pool

    spawn, sleep = gevent.spawn, gevent.sleep

    def wait(greenlets):
        return [greenlet.get() for greenlet in greenlets]

    def in_pool(function, items):
        return gevent.pool.Pool(2).map(function, items)

    def in_native_thread(function, *args):
        return gevent.get_hub().threadpool.apply(function, args)

else:
    import eventlet

    eventlet.monkey_patch()
    import eventlet.tpool

    spawn, sleep = eventlet.spawn, eventlet.sleep

    def wait(greenlets):
        return [greenlet.wait() for greenlet in greenlets]

    def in_pool(function, items):
        return list(eventlet.GreenPool(2).imap(function, items))

    def in_native_thread(function, *args):
        return eventlet.tpool.execute(function, *args)


import concurrent.futures
import threading
import urllib.parse

import requests
import urllib3
from flask import Flask, request

POOL = 64
TIMEOUT = 30

app = Flask(__name__)
session = requests.Session()
for scheme in "http://", "https://":
    pools = requests.adapters.HTTPAdapter(pool_connections=POOL, pool_maxsize=POOL)
    session.mount(scheme, pools)
manager = urllib3.PoolManager(num_pools=POOL, maxsize=POOL)
# Its workers are started by the requests that come first.
executor = concurrent.futures.ThreadPoolExecutor(8)


def get(url, library="requests"):
    if library == "requests":
        return session.get(url, timeout=TIMEOUT).text
    if library == "urllib3":
        return manager.request("GET", url, timeout=TIMEOUT).data.decode()
    if library == "http.client":
        parts = urllib.parse.urlsplit(url)
        kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
        connection = kinds[parts.scheme](parts.netloc, timeout=TIMEOUT)
        try:
            connection.request("GET", f"{parts.path}?{parts.query}")
            return connection.getresponse().read().decode()
        finally:
            connection.close()
    raise ValueError(f"no client is called {library!r}")


def calls():
    """The URLs that a request wants called."""
    tag = request.args.get("id", "none")
    count = request.args.get("n", default=3, type=int)
    return [f"{os.environ['APP_DOWNSTREAM']}?id={tag}&call={call}" for call in range(count)]


def library():
    return request.args.get("client", "requests")


@app.get("/")
def index():
    return "hello\n"


@app.get("/downstream")
def downstream():
    """One call after the other."""
    client = library()
    return [get(url, client) for url in calls()]


@app.get("/spawned")
def spawned():
    """A greenlet for each call, and one more between."""
    client = library()

    def one(url):
        return wait([spawn(get, url, client)])[0]

    return wait([spawn(one, url) for url in calls()])


@app.get("/pool")
def pool():
    """The greenlets of a pool that is made for the request."""
    return in_pool(get, calls())


@app.get("/threads")
def threads():
    """Threads, which monkey patching turns into greenlets."""
    running = [threading.Thread(target=get, args=(url,)) for url in calls()]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return "done\n"


@app.get("/later")
def later():
    """Calls that begin when the request may have been answered."""

    def one(url):
        sleep(0.05)
        get(url)

    for url in calls():
        spawn(one, url)
    return "begun\n"


@app.get("/executor")
def in_executor():
    """The workers of a pool that all requests share."""
    return list(executor.map(get, calls()))


@app.get("/native")
def native():
    """Threads of the operating system, which all requests share."""
    return [in_native_thread(plain, url) for url in calls()]


def plain(url):
    """A call without anything that greenlets share."""
    return get(url, "http.client")


def endlessly(name):
    call = 0
    while True:
        get(f"{os.environ['APP_DOWNSTREAM']}?id={name}&call={call}")
        call += 1
        sleep(0.02)


if os.environ.get("APP_UNOWNED") == "1":
    spawn(endlessly, "background-greenlet")
    threading.Thread(target=endlessly, args=("background-thread",), daemon=True).start()
