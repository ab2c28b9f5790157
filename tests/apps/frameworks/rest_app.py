"""Django REST framework (WSGI: `gunicorn frameworks.rest_wsgi:app`)."""

import os

import requests
from django.urls import include, path
from rest_framework.exceptions import APIException, NotFound
from rest_framework.response import Response
from rest_framework.routers import SimpleRouter
from rest_framework.views import APIView, exception_handler
from rest_framework.viewsets import ViewSet

from frameworks import basket


class Plain(APIView):
    def get(self, request):
        return Response("plain")


class User(APIView):
    def get(self, request, user_id):
        return Response({"id": user_id})

    def put(self, request, user_id):
        return Response({"changed": user_id})


class Order(APIView):
    def get(self, request, user_id, order):
        return Response({"id": user_id, "order": order})


class Items(ViewSet):
    def list(self, request):
        return Response([])

    def retrieve(self, request, pk):
        return Response({"item": pk})


def fetch_stock():
    return requests.get(os.environ["APP_DOWNSTREAM"], timeout=10)  # the call


class Call(APIView):
    def get(self, request):
        return Response({"stock": fetch_stock().text})


class Boom(APIView):
    def get(self, request):
        return Response({"total": basket.total()})


class Chained(APIView):
    def get(self, request):
        return Response({"total": basket.checkout()})


class Handled(APIView):
    def get(self, request):
        return Response({"reserved": basket.reserve()})


def out_of_stock(error, context):
    if isinstance(error, basket.OutOfStock):
        return Response({"out_of_stock": str(error)}, status=500)
    return exception_handler(error, context)


class Caught(APIView):
    def get(self, request):
        try:
            basket.reserve()
        except basket.OutOfStock:
            return Response("later")


class Gone(APIView):
    def get(self, request):
        raise NotFound()


class Unavailable(APIView):
    def get(self, request):
        error = APIException()
        error.status_code = 503
        raise error


router = SimpleRouter(trailing_slash=False)
router.register("items", Items, basename="item")

urlpatterns = [
    path("plain", Plain.as_view()),
    path("users/<int:user_id>", User.as_view()),
    path("users/<int:user_id>/orders/<slug:order>", Order.as_view()),
    path("shop/v1/", include(router.urls)),
    path("call", Call.as_view()),
    path("boom", Boom.as_view()),
    path("chained", Chained.as_view()),
    path("handled", Handled.as_view()),
    path("caught", Caught.as_view()),
    path("gone", Gone.as_view()),
    path("unavailable", Unavailable.as_view()),
]
