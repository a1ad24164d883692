"""The settings of the shop; those that begin with ``CELERY_`` are Celery's."""

import os
from pathlib import Path

BASE_DIR = Path(__file__).resolve().parent.parent
DATA_DIR = Path(os.environ.get("SHOP_DATA", BASE_DIR))

SECRET_KEY = os.environ.get("SHOP_SECRET_KEY", "good enough to try it out")
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
INSTALLED_APPS = ["shop"]
ROOT_URLCONF = "proj.urls"
TIME_ZONE = "UTC"

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": DATA_DIR / "shop.db",
        # Server and worker both write: seconds that one waits for the other.
        "OPTIONS": {"timeout": 20},
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# Never Django's own file. Django opens that with Python's sqlite3, the queue is opened with the
# SQLite inside APSW, and when one of two SQLite libraries in a process closes a file, POSIX drops
# the locks that the other one holds on it: both could then write at once.
CELERY_BROKER_URL = f"sqlite:///{DATA_DIR / 'queue.db'}"
CELERY_RESULT_BACKEND = CELERY_BROKER_URL
