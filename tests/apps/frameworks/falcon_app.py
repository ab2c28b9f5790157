"""Falcon (WSGI: `gunicorn frameworks.falcon_app:app`)."""

import os
import sys

import falcon
import httpx

from frameworks import basket, truth


class Tell:
    """Middleware that tells of each request what Falcon found."""

    def process_response(self, request, response, resource, succeeded):
        handler = None
        if resource is not None:
            handler = getattr(resource, f"on_{request.method.lower()}", None)
        truth.tell(
            request.method,
            request.path,
            response.status_code,
            request.uri_template,
            handler,
            getattr(request.context, "unhandled", None),
        )


class Request(falcon.Request):
    """Keeps the error for which Falcon answers 500 by itself, and logs it."""

    def log_error(self, message):
        self.context.unhandled = sys.exception()
        super().log_error(message)


class Plain:
    def on_get(self, request, response):
        response.text = "plain\n"


class User:
    def on_get(self, request, response, user_id):
        response.media = {"id": user_id}

    def on_put(self, request, response, user_id):
        response.media = {"changed": user_id}


class Order:
    def on_get(self, request, response, user_id, order):
        response.media = {"id": user_id, "order": order}


class Item:
    def on_get(self, request, response, item):
        response.media = {"item": item}


def fetch_stock():
    with httpx.Client() as client:
        return client.get(os.environ["APP_DOWNSTREAM"])  # the call


class Call:
    def on_get(self, request, response):
        response.media = {"stock": fetch_stock().text}


class Boom:
    def on_get(self, request, response):
        response.media = {"total": basket.total()}


class Chained:
    def on_get(self, request, response):
        response.media = {"total": basket.checkout()}


class Handled:
    def on_get(self, request, response):
        response.media = {"reserved": basket.reserve()}


def out_of_stock(request, response, error, params):
    response.status = falcon.HTTP_500
    response.media = {"out_of_stock": str(error)}


class Caught:
    def on_get(self, request, response):
        try:
            basket.reserve()
        except basket.OutOfStock:
            response.text = "later\n"


class Gone:
    def on_get(self, request, response):
        raise falcon.HTTPNotFound()


class Unavailable:
    def on_get(self, request, response):
        raise falcon.HTTPServiceUnavailable()


app = falcon.App(middleware=[Tell()], request_type=Request)
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
