"""Litestar (ASGI: `uvicorn frameworks.litestar_app:app`)."""

import os

from aiohttp import ClientSession
from litestar import Controller, Litestar, Response, Router, get, put
from litestar.exceptions import HTTPException, NotFoundException, ServiceUnavailableException

from frameworks import basket, truth


@get("/plain")
async def plain() -> str:
    return "plain\n"


@get("/users/{user_id:int}")
async def user(user_id: int) -> dict:
    return {"id": user_id}


@put("/users/{user_id:int}")
async def change_user(user_id: int) -> dict:
    return {"changed": user_id}


@get("/users/{user_id:int}/orders/{order:str}", sync_to_thread=True)
def user_order(user_id: int, order: str) -> dict:
    return {"id": user_id, "order": order}


class Items(Controller):
    path = "/items"

    @get("/{item:str}")
    async def item(self, item: str) -> dict:
        return {"item": item}


async def fetch_stock():
    async with ClientSession() as session:
        async with session.get(os.environ["APP_DOWNSTREAM"]) as answer:  # the call
            return await answer.text()


@get("/call")
async def call() -> dict:
    return {"stock": await fetch_stock()}


@get("/boom")
async def boom() -> dict:
    return {"total": basket.total()}


@get("/chained")
async def chained() -> dict:
    return {"total": basket.checkout()}


@get("/handled")
async def handled() -> dict:
    return {"reserved": basket.reserve()}


def out_of_stock(request, error):
    return Response({"out_of_stock": str(error)}, status_code=500)


@get("/caught")
async def caught() -> str:
    try:
        basket.reserve()
    except basket.OutOfStock:
        return "later\n"


@get("/gone")
async def gone() -> None:
    raise NotFoundException()


@get("/unavailable")
async def unavailable() -> None:
    raise ServiceUnavailableException()


async def unhandled(error, scope):
    """Litestar calls it for every exception, those that are answers too."""
    if not isinstance(error, (HTTPException, basket.OutOfStock)):
        scope["state"]["unhandled"] = error


async def tell(message, scope):
    if message["type"] != "http.response.start":
        return
    handler = scope.get("route_handler")
    truth.tell(
        scope["method"],
        scope["path"],
        message["status"],
        scope.get("path_template"),
        handler and handler.fn,
        scope["state"].get("unhandled"),
    )


app = Litestar(
    route_handlers=[
        plain,
        user,
        change_user,
        user_order,
        Router("/shop", route_handlers=[Router("/v1", route_handlers=[Items])]),
        call,
        boom,
        chained,
        handled,
        caught,
        gone,
        unavailable,
    ],
    exception_handlers={basket.OutOfStock: out_of_stock},
    after_exception=[unhandled],
    before_send=[tell],
)
