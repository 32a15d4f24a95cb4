"""The URLs of the example in Django, and its pool."""

from __future__ import annotations

from collections.abc import Callable

from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.views.decorators.http import require_GET, require_POST

from notes import work
from pgdbpool.web import wsgi

pool = work.open_pool()


@require_GET
def read(request: HttpRequest) -> JsonResponse:
    return JsonResponse(work.read(pool))


@require_POST
def write(request: HttpRequest) -> JsonResponse:
    return JsonResponse(work.write(pool, request.GET["key"]))


@require_POST
def transaction(request: HttpRequest) -> JsonResponse:
    return JsonResponse(work.transaction(pool, request.GET["key"]))


@require_POST
def batch(request: HttpRequest) -> JsonResponse:
    return JsonResponse(work.batch(pool, request.GET["key"], work.rows_wanted(request.GET["rows"])))


urlpatterns = [path(view.__name__, view) for view in (read, write, transaction, batch)]


class failures:
    """Middleware: what a client is told when the database lets us down."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self._get_response(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> JsonResponse | None:
        if isinstance(error, work.FAILURES):
            status, answer = work.failure(error)
            return JsonResponse(answer, status=status)
        if isinstance(error, (KeyError, ValueError)):
            return JsonResponse({"error": f"key and rows: {error}"}, status=400)
        return None


application = wsgi(beside=get_wsgi_application())  # the status page at /status
