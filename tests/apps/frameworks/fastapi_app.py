"""FastAPI (ASGI: `uvicorn frameworks.fastapi_app:app`)."""

import os

import httpx
from fastapi import APIRouter, Depends, FastAPI, HTTPException
from fastapi.responses import JSONResponse, PlainTextResponse

from frameworks import basket
from frameworks.asgi_truth import Tell

app = FastAPI()
shop = APIRouter(prefix="/shop")
version = APIRouter(prefix="/v1")
warehouse = FastAPI()


def reader(user_id: int):
    """A dependency, which FastAPI runs in a thread."""
    return {"id": user_id}


@app.get("/plain", response_class=PlainTextResponse)
async def plain():
    return "plain\n"


@app.get("/users/{user_id}")
async def user(found: dict = Depends(reader)):
    return found


@app.put("/users/{user_id}")
async def change_user(user_id: int):
    return {"changed": user_id}


@app.get("/users/{user_id}/orders/{order}")
def user_order(user_id: int, order: str):
    """No coroutine: Starlette runs it in a thread."""
    return {"id": user_id, "order": order}


@version.get("/items/{item}")
async def item(item: str):
    return {"item": item}


@warehouse.get("/parts/{part}")
async def part(part: str):
    return {"part": part}


async def fetch_stock():
    async with httpx.AsyncClient() as client:
        return await client.get(os.environ["APP_DOWNSTREAM"])  # the call


@app.get("/call")
async def call():
    return {"stock": (await fetch_stock()).text}


@app.get("/boom")
async def boom():
    return {"total": basket.total()}


@app.get("/boom/thread")
def boom_in_a_thread():
    return {"total": basket.total()}


@app.get("/chained")
async def chained():
    return {"total": basket.checkout()}


@app.get("/refund")
async def refund():
    return {"total": basket.refund()}


@app.get("/count")
async def count():
    return {"total": basket.count()}


@app.get("/deliver")
async def deliver():
    return {"total": basket.deliver()}


@app.get("/handled")
async def handled():
    return {"reserved": basket.reserve()}


@app.exception_handler(basket.OutOfStock)
async def out_of_stock(request, error):
    return JSONResponse({"out_of_stock": str(error)}, status_code=500)


@app.get("/caught", response_class=PlainTextResponse)
async def caught():
    try:
        basket.reserve()
    except basket.OutOfStock:
        return "later\n"


@app.get("/gone")
async def gone():
    raise HTTPException(404)


@app.get("/unavailable")
async def unavailable():
    raise HTTPException(503)


shop.include_router(version)
app.include_router(shop)
app.mount("/warehouse", warehouse)
app.add_middleware(Tell)
