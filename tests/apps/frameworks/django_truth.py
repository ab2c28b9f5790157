"""The outermost middleware of the Django applications: tells of each request
what Django resolved, and of exceptions what its signal carried.
"""

import sys

from asgiref.sync import iscoroutinefunction
from django.core.signals import got_request_exception
from django.dispatch import receiver
from django.utils.decorators import sync_and_async_middleware

from frameworks import truth


@receiver(got_request_exception)
def unhandled(sender, request, **extra):
    request.unhandled = sys.exception()


def answered(request, response):
    match = request.resolver_match
    handler = match and match.func
    actions = getattr(handler, "actions", None)
    view = getattr(handler, "cls", None) or getattr(handler, "view_class", None)
    if view is not None:
        name = request.method.lower()
        handler = getattr(view, actions[name] if actions else name, None)
    truth.tell(
        request.method,
        request.path,
        response.status_code,
        match and match.route,
        handler,
        getattr(request, "unhandled", None),
    )


@sync_and_async_middleware
def tell(get_response):
    if iscoroutinefunction(get_response):

        async def middleware(request):
            response = await get_response(request)
            answered(request, response)
            return response

    else:

        def middleware(request):
            response = get_response(request)
            answered(request, response)
            return response

    return middleware
