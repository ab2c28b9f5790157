"""The Flask application of the live tests (WSGI: `gunicorn flask_app:app`).

`APP_DOWNSTREAM` is the base URL that /downstream calls when the request gives
none.
"""

import os
import subprocess

from flask import Flask, Response, abort, jsonify, request
from markupsafe import escape

import handoffs
import sessions
from client import BlockingClients, context_headers, with_query

app = Flask(__name__)
clients = BlockingClients()


@app.get("/")
def index():
    return "hello\n"


@app.get("/items/<int:item_id>")
def item(item_id):
    return jsonify(id=item_id, name=f"item {item_id}")


@app.get("/status/<int:code>")
def status(code):
    return Response(None if code in (204, 304) else f"{code}\n", status=code)


@app.route("/echo", methods=["POST", "PUT"])
def echo():
    return Response(request.get_data(), mimetype="application/octet-stream")


@app.get("/stream")
def stream():
    parts = request.args.get("parts", default=5, type=int)
    return Response((f"part {part}\n" for part in range(parts)), mimetype="text/plain")


@app.get("/greet/<name>")
def greet(name):
    return f"hello {escape(name)}\n"


@app.get("/spawn")
def spawn():
    """Another program runs and ends while the request is worked on."""
    subprocess.run(["true"], check=True)
    return "done\n"


@app.get("/error")
def error():
    raise RuntimeError("the view failed")


@app.get("/missing")
def missing():
    abort(404)


@app.get("/downstream")
def downstream():
    """Makes `n` calls, one after the other, each with an id of its own, and
    with a trace context where one is wished."""
    url = request.args.get("url") or os.environ["APP_DOWNSTREAM"]
    library = request.args.get("client", "requests")
    tag = request.args.get("id", "none")
    count = request.args.get("n", default=1, type=int)
    headers = context_headers(request.args.get("traceparent"), request.headers)
    answers = [
        clients.get(library, with_query(url, id=tag, call=call), headers) for call in range(count)
    ]
    return jsonify(answers)


@app.get("/sessions/<way>")
def many_sessions(way):
    """What `sessions` does with the calls."""
    url = os.environ["APP_DOWNSTREAM"]
    tag = request.args.get("id", "none")
    count = request.args.get("n", default=1, type=int)
    sessions.WAYS[way]([with_query(url, id=tag, call=call) for call in range(count)])
    return "done\n"


@app.get("/handoff/<way>")
def handoff(way):
    """What `handoffs` does with the calls."""
    url = request.args.get("url") or os.environ["APP_DOWNSTREAM"]
    tag = request.args.get("id", "none")
    count = request.args.get("n", default=1, type=int)
    handoffs.BLOCKING[way]([with_query(url, id=tag, call=call) for call in range(count)])
    return "done\n"
