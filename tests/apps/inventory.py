"""The demo's inventory: Flask and SQLite, called by the shop.

`gunicorn --threads 4 inventory:app` with `APP_DATABASE`.
"""

from flask import Flask, abort, jsonify, request

import stock

app = Flask(__name__)
stock.fill()


@app.get("/items")
def items():
    offset = request.args.get("offset", default=0, type=int)
    limit = request.args.get("limit", default=10, type=int)
    return jsonify(stock.page(offset, limit))


@app.get("/items/<int:item_id>")
def item(item_id):
    found = stock.find(item_id)
    if found is None:
        abort(404)
    return jsonify(found)


@app.post("/items/<int:item_id>/reserve")
def reserve(item_id):
    if stock.take(item_id):
        return "", 204
    if stock.find(item_id) is None:
        abort(404)
    abort(409)


@app.post("/items/<int:item_id>/refill")
def refill(item_id):
    stock.refill(item_id)
    return "", 204


@app.get("/audit")
def audit():
    raise RuntimeError("the audit is not implemented")
