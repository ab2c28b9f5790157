"""The outermost tween of the Pyramid application: tells of each request which
route matched and which view Pyramid's introspection names for it.
"""

from frameworks import truth


def tell(handler, registry):
    def tween(request):
        status, error = 500, None
        try:
            response = handler(request)
            status = response.status_code
            return response
        except Exception as raised:
            error = raised
            raise
        finally:
            route = request.matched_route
            truth.tell(
                request.method,
                request.path,
                status,
                route and route.pattern,
                route and view_of(request),
                error,
            )

    return tween


def view_of(request):
    for entry in request.registry.introspector.get_category("views"):
        view = entry["introspectable"]
        methods = view["request_methods"]
        if view["route_name"] != request.matched_route.name:
            continue
        if methods and request.method not in methods:
            continue
        attribute = view["attr"]
        return getattr(view["callable"], attribute) if attribute else view["callable"]
    return None
