"""The benchmark's FastAPI service: one indexed SQLite query per request.

`uvicorn --workers 1 bench_fastapi:app` with `APP_DATABASE`.
"""

from fastapi import FastAPI, HTTPException

import stock

app = FastAPI()
stock.fill()


@app.get("/items/{item_id}")
async def item(item_id: int):
    found = stock.find(item_id)
    if found is None:
        raise HTTPException(status_code=404)
    return found
