"""Flask (WSGI: `gunicorn frameworks.flask_app:app`)."""

import os

import requests
from flask import Blueprint, Flask, abort, g, got_request_exception, request
from flask.views import MethodView

from frameworks import basket, truth

app = Flask(__name__)
shop = Blueprint("shop", __name__, url_prefix="/shop")
version = Blueprint("v1", __name__, url_prefix="/v1")


@app.get("/plain")
def plain():
    return "plain\n"


@app.get("/users/<int:user_id>")
def user(user_id):
    return {"id": user_id}


@app.put("/users/<int:user_id>")
def change_user(user_id):
    return {"changed": user_id}


@app.get("/users/<int:user_id>/orders/<order>")
def user_order(user_id, order):
    return {"id": user_id, "order": order}


@version.get("/items/<item>")
def item(item):
    return {"item": item}


class Part(MethodView):
    def get(self, part):
        return {"part": part}


def fetch_stock():
    return requests.get(os.environ["APP_DOWNSTREAM"], timeout=10)  # the call


@app.get("/call")
def call():
    return {"stock": fetch_stock().text}


@app.get("/boom")
def boom():
    return {"total": basket.total()}


@app.get("/chained")
def chained():
    return {"total": basket.checkout()}


@app.get("/refund")
def refund():
    return {"total": basket.refund()}


@app.get("/count")
def count():
    return {"total": basket.count()}


@app.get("/deliver")
def deliver():
    return {"total": basket.deliver()}


@app.get("/handled")
def handled():
    return {"reserved": basket.reserve()}


@app.errorhandler(basket.OutOfStock)
def out_of_stock(error):
    return {"out_of_stock": str(error)}, 500


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


app.add_url_rule("/parts/<part>", view_func=Part.as_view("part"))
shop.register_blueprint(version)
app.register_blueprint(shop)


@got_request_exception.connect_via(app)
def unhandled(sender, exception, **extra):
    g.unhandled = exception


@app.after_request
def tell(response):
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
