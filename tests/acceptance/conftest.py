"""The workers of the Celery tests serve here as well."""

from tests.celery.conftest import lab, make_lab

__all__ = ("lab", "make_lab")
