"""The outermost middleware of the Starlette and FastAPI applications: tells of
each request which route its scope ended with.
"""

import inspect

from starlette.routing import Match, Mount

from frameworks import truth


def mounts(routes, scope):
    """The patterns of the mounts on the way to the route that matches."""
    for route in routes:
        match, child_scope = route.matches(scope)
        if match is Match.FULL:
            if isinstance(route, Mount):
                return route.path + mounts(route.routes, {**scope, **child_scope})
            break
    return ""


class Tell:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        prefix = mounts(scope["app"].routes, dict(scope))
        status, error = 500, None

        async def watch(message):
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watch)
        except Exception as raised:
            error = raised
            raise
        finally:
            route = scope.get("route")
            # What FastAPI makes of a route that routers with prefixes include.
            included = scope.get("fastapi", {}).get("effective_route_context")
            handler = scope.get("endpoint")
            if inspect.isclass(handler):
                handler = getattr(handler, scope["method"].lower())
            truth.tell(
                scope["method"],
                path,
                status,
                route and prefix + (included or route).path,
                route and handler,
                error,
            )
