"""Tornado's own server: `python -m frameworks.tornado_app PORT`."""

import asyncio
import os
import sys

from tornado.httpclient import AsyncHTTPClient
from tornado.web import Application, HTTPError, RequestHandler, url

from frameworks import basket, truth


class Handler(RequestHandler):
    """Tells of each request what Tornado found."""

    unhandled = None

    def log_exception(self, kind, error, trace):
        if not isinstance(error, HTTPError):
            self.unhandled = error

    def on_finish(self):
        rules = self.application.wildcard_router.rules
        rule = next((rule for rule in rules if rule.target is type(self)), None)
        truth.tell(
            self.request.method,
            self.request.path,
            self.get_status(),
            # Tornado adds the dollar sign.
            rule and rule.regex.pattern.removesuffix("$"),
            rule and getattr(self, self.request.method.lower()),
            self.unhandled,
        )


class NotFound(Handler):
    def prepare(self):
        raise HTTPError(404)


class Plain(Handler):
    def get(self):
        self.write("plain\n")


class User(Handler):
    async def get(self, user_id):
        self.write({"id": user_id})

    async def put(self, user_id):
        self.write({"changed": user_id})


class Order(Handler):
    def get(self, user_id, order):
        self.write({"id": user_id, "order": order})


class Item(Handler):
    async def get(self, item):
        self.write({"item": item})


async def fetch_stock():
    return await AsyncHTTPClient().fetch(os.environ["APP_DOWNSTREAM"])  # the call


class Call(Handler):
    async def get(self):
        answer = await fetch_stock()
        self.write({"stock": answer.body.decode()})


class Boom(Handler):
    async def get(self):
        self.write({"total": basket.total()})


class Chained(Handler):
    def get(self):
        self.write({"total": basket.checkout()})


class Handled(Handler):
    async def get(self):
        try:
            self.write({"reserved": basket.reserve()})
        except basket.OutOfStock as error:
            self.set_status(500)
            self.write({"out_of_stock": str(error)})


class Caught(Handler):
    def get(self):
        try:
            basket.reserve()
        except basket.OutOfStock:
            self.write("later\n")


class Gone(Handler):
    def get(self):
        raise HTTPError(404)


class Unavailable(Handler):
    async def get(self):
        raise HTTPError(503)


def application():
    return Application(
        [
            url(r"/plain", Plain),
            url(r"/users/([0-9]+)", User),
            url(r"/users/(?P<user_id>[0-9]+)/orders/(?P<order>\w+)", Order),
            url(r"/shop/v1/items/([^/]+)", Item),
            url(r"/call", Call),
            url(r"/boom", Boom),
            url(r"/chained", Chained),
            url(r"/handled", Handled),
            url(r"/caught", Caught),
            url(r"/gone", Gone),
            url(r"/unavailable", Unavailable),
        ],
        default_handler_class=NotFound,
    )


async def main():
    application().listen(int(sys.argv[1]), address="127.0.0.1")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
