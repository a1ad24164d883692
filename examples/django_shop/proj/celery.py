"""The Celery app of the project, as Celery's documentation has it for Django, plus one import."""

import os

from celery import Celery

import kombu_sqlite  # noqa: F401  (makes Kombu know sqlite://)

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "proj.settings")

app = Celery("proj")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
