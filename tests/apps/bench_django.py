"""The benchmark's Django service: one query of the ORM's by primary key per
request, in SQLite.

`gunicorn --workers 1 --threads 8 bench_django:app` with `APP_DATABASE` and
`DJANGO_SETTINGS_MODULE=bench_django_settings`.
"""

from django.core.wsgi import get_wsgi_application
from django.db import models
from django.http import JsonResponse
from django.shortcuts import get_object_or_404
from django.urls import path

import stock

app = get_wsgi_application()
stock.fill()


class Item(models.Model):
    name = models.TextField()
    price = models.IntegerField()
    count = models.IntegerField()

    class Meta:
        app_label = "bench_django"
        db_table = "item"
        managed = False


def item(request, item_id):
    found = get_object_or_404(Item, pk=item_id)
    return JsonResponse(
        {"id": found.id, "name": found.name, "price": found.price, "count": found.count}
    )


urlpatterns = [path("items/<int:item_id>", item)]
