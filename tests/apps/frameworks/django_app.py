"""Django, as WSGI: `gunicorn frameworks.django_app:app`."""

import os
from urllib.request import urlopen

from django.core.wsgi import get_wsgi_application
from django.http import Http404, HttpResponse, JsonResponse
from django.urls import include, path, re_path
from django.views import View

from frameworks import basket

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "frameworks.django_settings")


def plain(request):
    return HttpResponse("plain\n")


def user(request, user_id):
    if request.method == "PUT":
        return JsonResponse({"changed": user_id})
    return JsonResponse({"id": user_id})


def user_order(request, user_id, order):
    return JsonResponse({"id": user_id, "order": order})


def item(request, item):
    return JsonResponse({"item": item})


class Part(View):
    def get(self, request, part):
        return JsonResponse({"part": part})


def fetch_stock():
    with urlopen(os.environ["APP_DOWNSTREAM"]) as answer:  # the call
        return answer.read().decode()


def call(request):
    return JsonResponse({"stock": fetch_stock()})


def boom(request):
    return JsonResponse({"total": basket.total()})


def chained(request):
    return JsonResponse({"total": basket.checkout()})


def handled(request):
    return JsonResponse({"reserved": basket.reserve()})


class OutOfStock:
    """Middleware that answers for what is out of stock."""

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        return self.get_response(request)

    def process_exception(self, request, error):
        if isinstance(error, basket.OutOfStock):
            return JsonResponse({"out_of_stock": str(error)}, status=500)
        return None


def caught(request):
    try:
        basket.reserve()
    except basket.OutOfStock:
        return HttpResponse("later\n")


def gone(request):
    raise Http404("gone")


def unavailable(request):
    return HttpResponse("later\n", status=503)


version = [
    path("items/<slug:item>", item),
]

shop = [
    path("v1/", include(version)),
]

urlpatterns = [
    path("plain", plain),
    path("users/<int:user_id>", user),
    re_path(r"^users/(?P<user_id>[0-9]+)/orders/(?P<order>\w+)$", user_order),
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

app = get_wsgi_application()
