"""Serves rest_app, whose imports read the settings."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "frameworks.rest_settings")
app = get_wsgi_application()
