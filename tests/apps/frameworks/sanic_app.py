"""Sanic's own server: `sanic frameworks.sanic_app:app --single-process`."""

import os

import httpx
from sanic import Blueprint, Sanic
from sanic.exceptions import NotFound, SanicException, ServiceUnavailable
from sanic.handlers import ErrorHandler
from sanic.response import json, text
from sanic.views import HTTPMethodView

from frameworks import basket, truth


class Errors(ErrorHandler):
    """Keeps the error that no handler was found for."""

    def default(self, request, error):
        if not isinstance(error, SanicException):
            request.ctx.unhandled = error
        return super().default(request, error)


app = Sanic("frameworks", error_handler=Errors())
version = Blueprint("v1", url_prefix="/v1")


@app.get("/plain")
async def plain(request):
    return text("plain\n")


@app.get("/users/<user_id:int>")
async def user(request, user_id):
    return json({"id": user_id})


@app.put("/users/<user_id:int>")
async def change_user(request, user_id):
    return json({"changed": user_id})


@app.get("/users/<user_id:int>/orders/<order>")
def user_order(request, user_id, order):
    return json({"id": user_id, "order": order})


@version.get("/items/<item>")
async def item(request, item):
    return json({"item": item})


class Part(HTTPMethodView):
    async def get(self, request, part):
        return json({"part": part})


async def fetch_stock():
    async with httpx.AsyncClient() as client:
        return await client.get(os.environ["APP_DOWNSTREAM"])  # the call


@app.get("/call")
async def call(request):
    return json({"stock": (await fetch_stock()).text})


@app.get("/boom")
async def boom(request):
    return json({"total": basket.total()})


@app.get("/chained")
async def chained(request):
    return json({"total": basket.checkout()})


@app.get("/handled")
async def handled(request):
    return json({"reserved": basket.reserve()})


@app.exception(basket.OutOfStock)
async def out_of_stock(request, error):
    return json({"out_of_stock": str(error)}, status=500)


@app.get("/caught")
async def caught(request):
    try:
        basket.reserve()
    except basket.OutOfStock:
        return text("later\n")


@app.get("/gone")
async def gone(request):
    raise NotFound()


@app.get("/unavailable")
async def unavailable(request):
    raise ServiceUnavailable()


app.add_route(Part.as_view(), "/parts/<part>")
app.blueprint(Blueprint.group(version, url_prefix="/shop"))


@app.on_response
async def tell(request, response):
    route = request.route
    handler = route and route.handler
    if hasattr(handler, "view_class"):
        handler = getattr(handler.view_class, request.method.lower())
    truth.tell(
        request.method,
        request.path,
        response.status,
        request.uri_template,
        handler,
        getattr(request.ctx, "unhandled", None),
    )
