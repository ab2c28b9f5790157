"""Settings of django_app."""

ALLOWED_HOSTS = ["*"]
MIDDLEWARE = ["frameworks.django_truth.tell", "frameworks.django_app.OutOfStock"]
ROOT_URLCONF = "frameworks.django_app"
SECRET_KEY = "of the tests"
