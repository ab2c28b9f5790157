"""aiohttp's own server: `python -m aiohttp.web frameworks.aiohttp_app:application`."""

import inspect
import os

from aiohttp import ClientSession, web

from frameworks import basket, truth

routes = web.RouteTableDef()


@routes.get("/plain")
async def plain(request):
    return web.Response(text="plain\n")


@routes.get("/users/{user_id}")
async def user(request):
    return web.json_response({"id": request.match_info["user_id"]})


@routes.put("/users/{user_id}")
async def change_user(request):
    return web.json_response({"changed": request.match_info["user_id"]})


@routes.get(r"/users/{user_id:\d+}/orders/{order}")
async def user_order(request):
    return web.json_response(dict(request.match_info))


async def item(request):
    return web.json_response({"item": request.match_info["item"]})


@routes.view("/parts/{part}")
class Part(web.View):
    async def get(self):
        return web.json_response({"part": self.request.match_info["part"]})


async def fetch_stock():
    async with ClientSession() as session:
        async with session.get(os.environ["APP_DOWNSTREAM"]) as answer:  # the call
            return await answer.text()


@routes.get("/call")
async def call(request):
    return web.json_response({"stock": await fetch_stock()})


@routes.get("/boom")
async def boom(request):
    return web.json_response({"total": basket.total()})


@routes.get("/chained")
async def chained(request):
    return web.json_response({"total": basket.checkout()})


@routes.get("/handled")
async def handled(request):
    return web.json_response({"reserved": basket.reserve()})


@web.middleware
async def out_of_stock(request, handler):
    try:
        return await handler(request)
    except basket.OutOfStock as error:
        return web.json_response({"out_of_stock": str(error)}, status=500)


@routes.get("/caught")
async def caught(request):
    try:
        basket.reserve()
    except basket.OutOfStock:
        return web.Response(text="later\n")


@routes.get("/gone")
async def gone(request):
    raise web.HTTPNotFound()


@routes.get("/unavailable")
async def unavailable(request):
    raise web.HTTPServiceUnavailable()


@web.middleware
async def tell(request, handler):
    """The outermost middleware."""
    status, error = 500, None
    try:
        response = await handler(request)
        status = response.status
        return response
    except web.HTTPException as answer:
        status = answer.status
        raise
    except Exception as raised:
        error = raised
        raise
    finally:
        match = request.match_info
        resource = match.route.resource
        view = match.handler
        if inspect.isclass(view):
            view = getattr(view, request.method.lower())
        truth.tell(
            request.method,
            request.path,
            status,
            resource and resource.canonical,
            resource and view,
            error,
        )


def application(arguments=None):
    version = web.Application()
    version.router.add_get("/items/{item}", item)
    shop = web.Application()
    shop.add_subapp("/v1", version)
    app = web.Application(middlewares=[tell, out_of_stock])
    app.add_routes(routes)
    app.add_subapp("/shop", shop)
    return app
