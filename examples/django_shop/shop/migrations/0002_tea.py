"""Something to sell."""

from typing import Any

from django.db import migrations


def stock_up(apps: Any, schema_editor: Any) -> None:
    """Put ten packets of tea on the shelf."""
    apps.get_model("shop", "Product").objects.create(name="tea", stock=10)


class Migration(migrations.Migration):
    """Fills the shelf."""

    dependencies = [("shop", "0001_initial")]
    operations = [migrations.RunPython(stock_up, migrations.RunPython.noop)]
