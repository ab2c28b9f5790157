"""Bottle (WSGI: `gunicorn frameworks.bottle_app:app`)."""

import os
from urllib.request import urlopen

from bottle import Bottle, HTTPResponse, abort, request, response

from frameworks import basket, truth


class Application(Bottle):
    """Tells of each request where Bottle has decided on the answer."""

    def _handle(self, environ):
        out = super()._handle(environ)
        route = environ.get("bottle.route")
        truth.tell(
            request.method,
            environ["bottle.raw_path"],
            out.status_code if isinstance(out, HTTPResponse) else response.status_code,
            route and route.rule,
            route and route.callback,
            environ.get("bottle.exc_info", (None, None))[1],
        )
        return out


app = Application()
version = Bottle()


@app.get("/plain")
def plain():
    return "plain\n"


@app.get("/users/<user_id:int>")
def user(user_id):
    return {"id": user_id}


@app.put("/users/<user_id:int>")
def change_user(user_id):
    return {"changed": user_id}


@app.get("/users/<user_id:int>/orders/<order>")
def user_order(user_id, order):
    return {"id": user_id, "order": order}


@version.get("/items/<item>")
def item(item):
    return {"item": item}


def fetch_stock():
    with urlopen(os.environ["APP_DOWNSTREAM"]) as answer:  # the call
        return answer.read().decode()


@app.get("/call")
def call():
    return {"stock": fetch_stock()}


@app.get("/boom")
def boom():
    return {"total": basket.total()}


@app.get("/chained")
def chained():
    return {"total": basket.checkout()}


def out_of_stock(callback):
    """A plugin that answers for what is out of stock."""

    def wrapper(*args, **kwargs):
        try:
            return callback(*args, **kwargs)
        except basket.OutOfStock as error:
            return HTTPResponse({"out_of_stock": str(error)}, status=500)

    return wrapper


@app.get("/handled", apply=[out_of_stock])
def handled():
    return {"reserved": basket.reserve()}


@app.get("/caught")
def caught():
    try:
        basket.reserve()
    except basket.OutOfStock:
        return "later\n"


@app.get("/gone")
def gone():
    abort(404)


@app.get("/unavailable")
def unavailable():
    abort(503)


app.mount("/shop/v1/", version)
