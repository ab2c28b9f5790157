"""Settings of the benchmark's Django service: the middleware of a new project
that needs no tables of its own.
"""

import os

SECRET_KEY = "of a benchmark"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "bench_django"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ["APP_DATABASE"],
        "OPTIONS": {"timeout": 30},
        "CONN_MAX_AGE": None,
    }
}
