"""Quart (ASGI: `hypercorn frameworks.quart_app:app`)."""

import os

import httpx
from quart import Blueprint, Quart, abort, g, got_request_exception, request
from quart.views import MethodView

from frameworks import basket, truth

app = Quart(__name__)
shop = Blueprint("shop", __name__, url_prefix="/shop")
version = Blueprint("v1", __name__, url_prefix="/v1")


@app.get("/plain")
async def plain():
    return "plain\n"


@app.get("/users/<int:user_id>")
async def user(user_id):
    return {"id": user_id}


@app.put("/users/<int:user_id>")
async def change_user(user_id):
    return {"changed": user_id}


@app.get("/users/<int:user_id>/orders/<order>")
async def user_order(user_id, order):
    return {"id": user_id, "order": order}


@version.get("/items/<item>")
async def item(item):
    return {"item": item}


class Part(MethodView):
    async def get(self, part):
        return {"part": part}


async def fetch_stock():
    async with httpx.AsyncClient() as client:
        return await client.get(os.environ["APP_DOWNSTREAM"])  # the call


@app.get("/call")
async def call():
    return {"stock": (await fetch_stock()).text}


@app.get("/boom")
async def boom():
    return {"total": basket.total()}


@app.get("/chained")
async def chained():
    return {"total": basket.checkout()}


@app.get("/handled")
async def handled():
    return {"reserved": basket.reserve()}


@app.errorhandler(basket.OutOfStock)
async def out_of_stock(error):
    return {"out_of_stock": str(error)}, 500


@app.get("/caught")
async def caught():
    try:
        basket.reserve()
    except basket.OutOfStock:
        return "later\n"


@app.get("/gone")
async def gone():
    abort(404)


@app.get("/unavailable")
async def unavailable():
    abort(503)


app.add_url_rule("/parts/<part>", view_func=Part.as_view("part"))
shop.register_blueprint(version)
app.register_blueprint(shop)


@got_request_exception.connect_via(app)
async def unhandled(sender, exception, **extra):
    g.unhandled = exception


@app.after_request
async def tell(response):
    rule = request.url_rule
    handler = rule and app.view_functions[rule.endpoint]
    if hasattr(handler, "view_class"):
        handler = getattr(handler.view_class, request.method.lower())
    truth.tell(
        request.method,
        request.path,
        response.status_code,
        rule and rule.rule,
        handler,
        g.get("unhandled"),
    )
    return response
