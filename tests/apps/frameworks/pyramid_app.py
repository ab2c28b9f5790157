"""Pyramid (WSGI: `gunicorn frameworks.pyramid_app:application()`)."""

import os

import requests
from pyramid.config import Configurator
from pyramid.httpexceptions import HTTPNotFound, HTTPServiceUnavailable
from pyramid.response import Response
from pyramid.tweens import INGRESS
from pyramid.view import exception_view_config, view_config

from frameworks import basket


@view_config(route_name="plain")
def plain(request):
    return Response("plain\n")


@view_config(route_name="user", request_method="GET", renderer="json")
def user(request):
    return {"id": request.matchdict["user_id"]}


@view_config(route_name="user", request_method="PUT", renderer="json")
def change_user(request):
    return {"changed": request.matchdict["user_id"]}


@view_config(route_name="user_order", renderer="json")
def user_order(request):
    return dict(request.matchdict)


@view_config(route_name="item", renderer="json")
def item(request):
    return {"item": request.matchdict["item"]}


class Part:
    def __init__(self, request):
        self.request = request

    @view_config(route_name="part", renderer="json")
    def show(self):
        return {"part": self.request.matchdict["part"]}


def fetch_stock():
    return requests.get(os.environ["APP_DOWNSTREAM"], timeout=10)  # the call


@view_config(route_name="call", renderer="json")
def call(request):
    return {"stock": fetch_stock().text}


@view_config(route_name="boom", renderer="json")
def boom(request):
    return {"total": basket.total()}


@view_config(route_name="chained", renderer="json")
def chained(request):
    return {"total": basket.checkout()}


@view_config(route_name="handled", renderer="json")
def handled(request):
    return {"reserved": basket.reserve()}


@exception_view_config(basket.OutOfStock)
def out_of_stock(error, request):
    return Response(f"out of stock: {error}\n", status=500)


@view_config(route_name="caught")
def caught(request):
    try:
        basket.reserve()
    except basket.OutOfStock:
        return Response("later\n")


@view_config(route_name="gone")
def gone(request):
    raise HTTPNotFound()


@view_config(route_name="unavailable")
def unavailable(request):
    raise HTTPServiceUnavailable()


def shop(config):
    config.include(version, route_prefix="v1")


def version(config):
    config.add_route("item", "/items/{item}")


def application():
    with Configurator() as config:
        config.add_tween("frameworks.pyramid_truth.tell", under=INGRESS)
        config.add_route("plain", "/plain")
        config.add_route("user", "/users/{user_id}")
        config.add_route("user_order", r"/users/{user_id:\d+}/orders/{order}")
        config.add_route("part", "/parts/{part}")
        for name in ["call", "boom", "chained", "handled", "caught", "gone", "unavailable"]:
            config.add_route(name, "/" + name)
        config.include(shop, route_prefix="shop")
        config.scan(__name__)
        return config.make_wsgi_app()
