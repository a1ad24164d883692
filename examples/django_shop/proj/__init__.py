"""The project; loading it loads its Celery app, so that ``shared_task`` finds its broker."""

from .celery import app as celery_app

__all__ = ("celery_app",)
