"""The example application in Django, as one file: ``python -m notes.django_app runserver``, or any WSGI server.

`runserver` has two processes: one that watches the files, and one that serves and is made anew when a file changes.
Only the second loads the URLs and the WSGI application, so the pool, which is made with them, is in that one only.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import django
from django.conf import settings

if not settings.configured:
    settings.configure(
        DEBUG=os.environ.get("DEBUG") == "1",
        SECRET_KEY=os.environ.get("SECRET_KEY", "only for the example"),
        ALLOWED_HOSTS=["127.0.0.1", "localhost"],
        ROOT_URLCONF="notes.django_urls",
        WSGI_APPLICATION="notes.django_urls.application",
        MIDDLEWARE=["notes.django_urls.failures"],
        DATABASES={},
    )
    django.setup()


def main(arguments: list[str]) -> Any:
    from django.core.management import execute_from_command_line

    return execute_from_command_line(arguments)


if __name__ == "__main__":
    main(sys.argv)
