"""Falcon, as ASGI: `uvicorn frameworks.falcon_asgi_app:app`."""

import logging
import os
from contextvars import ContextVar

import falcon
import falcon.asgi
import httpx

from frameworks import basket, truth

unhandled = ContextVar("unhandled", default=None)


class Tell:
    """Middleware that tells of each request what Falcon found."""

    async def process_request(self, request, response):
        unhandled.set(None)

    async def process_response(self, request, response, resource, succeeded):
        handler = None
        if resource is not None:
            handler = getattr(resource, f"on_{request.method.lower()}", None)
        truth.tell(
            request.method,
            request.path,
            response.status_code,
            request.uri_template,
            handler,
            unhandled.get(),
        )


class Errors(logging.Handler):
    """Keeps the error for which Falcon answers 500 by itself, and logs it."""

    def emit(self, record):
        if record.exc_info:
            unhandled.set(record.exc_info[1])


class Plain:
    async def on_get(self, request, response):
        response.text = "plain\n"


class User:
    async def on_get(self, request, response, user_id):
        response.media = {"id": user_id}

    async def on_put(self, request, response, user_id):
        response.media = {"changed": user_id}


class Order:
    async def on_get(self, request, response, user_id, order):
        response.media = {"id": user_id, "order": order}


class Item:
    async def on_get(self, request, response, item):
        response.media = {"item": item}


async def fetch_stock():
    async with httpx.AsyncClient() as client:
        return await client.get(os.environ["APP_DOWNSTREAM"])  # the call


class Call:
    async def on_get(self, request, response):
        response.media = {"stock": (await fetch_stock()).text}


class Boom:
    async def on_get(self, request, response):
        response.media = {"total": basket.total()}


class Chained:
    async def on_get(self, request, response):
        response.media = {"total": basket.checkout()}


class Handled:
    async def on_get(self, request, response):
        response.media = {"reserved": basket.reserve()}


async def out_of_stock(request, response, error, params):
    response.status = falcon.HTTP_500
    response.media = {"out_of_stock": str(error)}


class Caught:
    async def on_get(self, request, response):
        try:
            basket.reserve()
        except basket.OutOfStock:
            response.text = "later\n"


class Gone:
    async def on_get(self, request, response):
        raise falcon.HTTPNotFound()


class Unavailable:
    async def on_get(self, request, response):
        raise falcon.HTTPServiceUnavailable()


logging.getLogger("falcon").addHandler(Errors())
app = falcon.asgi.App(middleware=[Tell()])
app.add_error_handler(basket.OutOfStock, out_of_stock)
app.add_route("/plain", Plain())
app.add_route("/users/{user_id:int}", User())
app.add_route("/users/{user_id:int}/orders/{order}", Order())
app.add_route("/shop/v1/items/{item}", Item())
app.add_route("/call", Call())
app.add_route("/boom", Boom())
app.add_route("/chained", Chained())
app.add_route("/handled", Handled())
app.add_route("/caught", Caught())
app.add_route("/gone", Gone())
app.add_route("/unavailable", Unavailable())
