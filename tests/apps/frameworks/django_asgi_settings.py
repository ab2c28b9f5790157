"""Settings of django_asgi_app."""

ALLOWED_HOSTS = ["*"]
MIDDLEWARE = ["frameworks.django_truth.tell", "frameworks.django_asgi_app.OutOfStock"]
ROOT_URLCONF = "frameworks.django_asgi_app"
SECRET_KEY = "of the tests"
