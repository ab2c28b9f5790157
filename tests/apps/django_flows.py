"""The Django application of the attribution suite: `django_flows.py HOST:PORT`
serves it with Django's own `runserver`, a thread for each connection.

`/downstream` makes `n` calls, one after the other, which carry the request's
id and a number of their own.
"""

import os
import sys

from django.conf import settings
from django.core.management import execute_from_command_line
from django.core.servers.basehttp import WSGIServer
from django.http import HttpResponse, JsonResponse
from django.urls import path

from client import BlockingClients, with_query

if not settings.configured:
    settings.configure(ROOT_URLCONF="django_flows", ALLOWED_HOSTS=["*"], DEBUG=False)

clients = BlockingClients()


def index(request):
    return HttpResponse("hello\n")


def downstream(request):
    count = int(request.GET.get("n", "1"))
    tag = request.GET.get("id", "none")
    library = request.GET.get("client", "requests")
    urls = (with_query(os.environ["APP_DOWNSTREAM"], id=tag, call=call) for call in range(count))
    return JsonResponse([clients.get(library, url) for url in urls], safe=False)


urlpatterns = [path("", index), path("downstream", downstream)]

if __name__ == "__main__":
    # As the module of that name, it is the one that has the URLs.
    sys.modules["django_flows"] = sys.modules["__main__"]
    # Of those who wait longer the kernel turns some away, and they try again
    # after pauses that double.
    WSGIServer.request_queue_size = 256
    execute_from_command_line(["manage.py", "runserver", "--noreload", sys.argv[1]])
