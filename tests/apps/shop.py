"""The demo's shop: FastAPI, calls the inventory for everything it knows.

`uvicorn shop:app` with `APP_INVENTORY`, the inventory's base URL.
"""

import asyncio
import os
from contextlib import asynccontextmanager

import httpx
import requests
from fastapi import FastAPI, HTTPException

session = requests.Session()


@asynccontextmanager
async def lifespan(app):
    app.state.inventory = httpx.AsyncClient(base_url=os.environ["APP_INVENTORY"], timeout=30)
    yield
    await app.state.inventory.aclose()


app = FastAPI(lifespan=lifespan)


async def fetch(path):
    response = await app.state.inventory.get(path)
    if response.status_code == 404:
        raise HTTPException(status_code=404, detail="there is no such item")
    response.raise_for_status()
    return response.json()


@app.get("/")
async def front_page():
    return {"items": await fetch("/items?limit=5")}


@app.get("/items/{item_id}")
async def item(item_id: int):
    return await fetch(f"/items/{item_id}")


@app.get("/compare")
async def compare(ids: str):
    """Several items, all asked for at once."""
    paths = [f"/items/{int(item_id)}" for item_id in ids.split(",")]
    return {"items": await asyncio.gather(*(fetch(path) for path in paths))}


@app.post("/orders/{item_id}")
async def order(item_id: int):
    response = await app.state.inventory.post(f"/items/{item_id}/reserve")
    if response.status_code == 409:
        await app.state.inventory.post(f"/items/{item_id}/refill")
        response = await app.state.inventory.post(f"/items/{item_id}/reserve")
    if response.status_code == 404:
        raise HTTPException(status_code=404, detail="there is no such item")
    response.raise_for_status()
    return {"ordered": item_id}


@app.get("/report")
def report():
    """No coroutine: runs in the thread pool, with a client that blocks."""
    pages = [
        session.get(f"{os.environ['APP_INVENTORY']}/items?offset={offset}&limit=50", timeout=30)
        for offset in (0, 50)
    ]
    return {"value": sum(item["price"] * item["count"] for page in pages for item in page.json())}


@app.get("/audit")
async def audit():
    """Fails, because the inventory does."""
    return await fetch("/audit")
