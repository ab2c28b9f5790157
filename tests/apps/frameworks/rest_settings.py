"""Settings of rest_app."""

ALLOWED_HOSTS = ["*"]
MIDDLEWARE = ["frameworks.django_truth.tell"]
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [],
    "DEFAULT_PERMISSION_CLASSES": [],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "EXCEPTION_HANDLER": "frameworks.rest_app.out_of_stock",
    "UNAUTHENTICATED_USER": None,
}
ROOT_URLCONF = "frameworks.rest_app"
SECRET_KEY = "of the tests"
