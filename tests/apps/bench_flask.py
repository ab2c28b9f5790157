"""The benchmark's Flask service: one indexed SQLite query per request.

`gunicorn --workers 1 --threads 8 bench_flask:app` with `APP_DATABASE`.
"""

from flask import Flask, abort, jsonify

import stock

app = Flask(__name__)
stock.fill()


@app.get("/items/<int:item_id>")
def item(item_id):
    found = stock.find(item_id)
    if found is None:
        abort(404)
    return jsonify(found)
