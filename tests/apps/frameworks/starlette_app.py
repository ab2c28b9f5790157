"""Starlette (ASGI: `uvicorn frameworks.starlette_app:app`)."""

import os

import httpx
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Mount, Route, Router

from frameworks import basket
from frameworks.asgi_truth import Tell


async def plain(request):
    return PlainTextResponse("plain\n")


async def user(request):
    return JSONResponse({"id": request.path_params["user_id"]})


async def change_user(request):
    return JSONResponse({"changed": request.path_params["user_id"]})


def user_order(request):
    """No coroutine: Starlette runs it in a thread."""
    return JSONResponse(request.path_params)


async def item(request):
    return JSONResponse({"item": request.path_params["item"]})


class Part(HTTPEndpoint):
    async def get(self, request):
        return JSONResponse({"part": request.path_params["part"]})


async def fetch_stock():
    async with httpx.AsyncClient() as client:
        return await client.get(os.environ["APP_DOWNSTREAM"])  # the call


async def call(request):
    return JSONResponse({"stock": (await fetch_stock()).text})


async def boom(request):
    return JSONResponse({"total": basket.total()})


async def chained(request):
    return JSONResponse({"total": basket.checkout()})


async def handled(request):
    return JSONResponse({"reserved": basket.reserve()})


async def out_of_stock(request, error):
    return JSONResponse({"out_of_stock": str(error)}, status_code=500)


async def caught(request):
    try:
        basket.reserve()
    except basket.OutOfStock:
        return PlainTextResponse("later\n")


async def gone(request):
    raise HTTPException(404)


async def unavailable(request):
    raise HTTPException(503)


class Polite(BaseHTTPMiddleware):
    """Middleware that runs the application in a task of its own."""

    async def dispatch(self, request, call_next):
        response = await call_next(request)
        response.headers["x-polite"] = "yes"
        return response


routes = [
    Route("/plain", plain),
    Route("/users/{user_id:int}", user),
    Route("/users/{user_id:int}", change_user, methods=["PUT"]),
    Route("/users/{user_id:int}/orders/{order}", user_order),
    Mount("/shop", routes=[Mount("/v1", app=Router([Route("/items/{item}", item)]))]),
    Mount("/stores/{store}", routes=[Route("/items/{item}", item)]),
    Route("/parts/{part}", Part),
    Route("/call", call),
    Route("/boom", boom),
    Route("/chained", chained),
    Route("/handled", handled),
    Route("/caught", caught),
    Route("/gone", gone),
    Route("/unavailable", unavailable),
]

middleware = [Middleware(Tell)]
if os.environ.get("APP_MIDDLEWARE") == "base":
    middleware.append(Middleware(Polite))

app = Starlette(
    routes=routes,
    middleware=middleware,
    exception_handlers={basket.OutOfStock: out_of_stock},
)
