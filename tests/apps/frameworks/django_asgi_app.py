"""Django, as ASGI: `uvicorn frameworks.django_asgi_app:app`.

Its views are coroutines, but for `/users/...`, which Django runs in a thread.
"""

import os

import httpx
from asgiref.sync import markcoroutinefunction
from django.core.asgi import get_asgi_application
from django.http import Http404, HttpResponse, JsonResponse
from django.urls import include, path
from django.views import View

from frameworks import basket

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "frameworks.django_asgi_settings")


async def plain(request):
    return HttpResponse("plain\n")


def user(request, user_id):
    if request.method == "PUT":
        return JsonResponse({"changed": user_id})
    return JsonResponse({"id": user_id})


def user_order(request, user_id, order):
    return JsonResponse({"id": user_id, "order": order})


async def item(request, item):
    return JsonResponse({"item": item})


class Part(View):
    async def get(self, request, part):
        return JsonResponse({"part": part})


async def fetch_stock():
    async with httpx.AsyncClient() as client:
        return await client.get(os.environ["APP_DOWNSTREAM"])  # the call


async def call(request):
    return JsonResponse({"stock": (await fetch_stock()).text})


async def boom(request):
    return JsonResponse({"total": basket.total()})


async def chained(request):
    return JsonResponse({"total": basket.checkout()})


async def handled(request):
    return JsonResponse({"reserved": basket.reserve()})


async def caught(request):
    try:
        basket.reserve()
    except basket.OutOfStock:
        return HttpResponse("later\n")


async def gone(request):
    raise Http404("gone")


async def unavailable(request):
    return HttpResponse("later\n", status=503)


class OutOfStock:
    """Middleware that answers for what is out of stock."""

    async_capable = True
    sync_capable = False

    def __init__(self, get_response):
        self.get_response = get_response
        markcoroutinefunction(self)

    async def __call__(self, request):
        return await self.get_response(request)

    def process_exception(self, request, error):
        if isinstance(error, basket.OutOfStock):
            return JsonResponse({"out_of_stock": str(error)}, status=500)
        return None


version = [
    path("items/<slug:item>", item),
]

shop = [
    path("v1/", include(version)),
]

urlpatterns = [
    path("plain", plain),
    path("users/<int:user_id>", user),
    path("users/<int:user_id>/orders/<slug:order>", user_order),
    path("shop/", include(shop)),
    path("parts/<int:part>", Part.as_view()),
    path("call", call),
    path("boom", boom),
    path("chained", chained),
    path("handled", handled),
    path("caught", caught),
    path("gone", gone),
    path("unavailable", unavailable),
]

app = get_asgi_application()
